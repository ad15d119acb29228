"""A fake kubelet: runs the pods that are bound to its nodes as processes of this machine.

It does what Haversack can tell a kubelet by: admission by capacity, Pending to Running to
Succeeded or Failed with exit codes, SIGTERM and SIGKILL when a pod is deleted, and the deletion
confirmed at the end. It runs the first container only and never restarts it. A container that a
signal ended has exit code 128 + signal, as a container runtime reports it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self

import aiohttp
from support.kubernetes.client import STRATEGIC, Client, Json, Reply
from support.kubernetes.containers import (
    NotRunnableError,
    amount_of,
    die_with_parent,
    launch_of,
    requested,
)
from support.kubernetes.loops import loop_thread
from support.kubernetes.node_logs import NodeLogs
from support.kubernetes.pod_rules import TERMINAL
from support.kubernetes.resources import NODES, PODS

from scheduler.clock import SystemClock, iso
from scheduler.execution.kubernetes.access import Access

_RETRY_S = 0.05
_WATCH_S = 300
_IN_FLIGHT = 32
_NONE = Fraction(0)
_KILLED = 128 + signal.SIGKILL
_SERVER_TROUBLE = (aiohttp.ClientError, TimeoutError, ConnectionError)


@dataclass(frozen=True, slots=True)
class Pretence:
    """Instead of processes: every pod runs so long and ends so.

    Attributes:
        run_s: seconds from Running to the end; None runs until it is deleted.
        exit_code: of its container.
    """

    run_s: float | None = None
    exit_code: int = 0


@dataclass(frozen=True, slots=True)
class _Room:
    """What one node has and what its pods take."""

    capacity: dict[str, Fraction]
    used: dict[str, Fraction]

    def take(self, asked: Mapping[str, Fraction]) -> tuple[str, str]:
        for name, amount in asked.items():
            used, capacity = self.used.get(name, _NONE), self.capacity.get(name, _NONE)
            if used + amount > capacity:
                why = (
                    f"Node didn't have enough resource: {name}, requested: {amount}, "
                    f"used: {used}, capacity: {capacity}"
                )
                return f"OutOf{name}", why
        for name, amount in asked.items():
            self.used[name] = self.used.get(name, _NONE) + amount
        return "", ""

    def free(self, asked: Mapping[str, Fraction]) -> None:
        for name, amount in asked.items():
            self.used[name] -= amount


class Kubelet:
    """The kubelets of some nodes; `async with` runs them in the present loop.

    Args:
        access: the API server; a user that faults spare (`Faults.victim`) is best.
        nodes: names of the nodes; None takes every node that there is at the start.
        folder: where pods get their folders, and their output its files.
        pretence: start no processes; None starts them.
        environment: for every process, beneath what its pod says.

    Attributes:
        admitted: pods that were taken, `namespace/name`, in order.
        rejected: pods that found no room.
    """

    def __init__(
        self,
        access: Access,
        nodes: Iterable[str] | None = None,
        *,
        folder: Path,
        pretence: Pretence | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.admitted: list[str] = []
        self.rejected: list[str] = []
        self._client = Client(access)
        self._named = None if nodes is None else frozenset(nodes)
        self._rooms: dict[str, _Room] = {}
        self._folder = folder
        self._pretence = pretence
        self._environment = dict(environment or {})
        self._workers: dict[str, _Worker] = {}
        self._logs: NodeLogs | None = None
        self._stack = contextlib.AsyncExitStack()
        self._slots = asyncio.Semaphore(_IN_FLIGHT)
        self._tasks: set[asyncio.Task[None]] = set()
        self._failures: list[BaseException] = []

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        if self._pretence is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._logs = await self._stack.enter_async_context(
                NodeLogs(self._folder, self._log_file, self._is_running)
            )
        await self._learn_nodes()
        self._start(self._follow())
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stack.aclose()
        await self._client.__aexit__()
        if self._failures:
            raise BaseExceptionGroup("the fake kubelet failed", self._failures)

    def log(self, name: str, namespace: str = "default") -> str:
        """What the pods of this name have written, oldest first."""
        found = sorted(self._folder.glob(f"{namespace}_{name}_*/main.log"), key=os.path.getmtime)
        return "".join(path.read_text(errors="replace") for path in found)

    def _log_file(self, namespace: str, name: str) -> Path | None:
        """What the youngest pod of this name writes to."""
        found = self._folder.glob(f"{namespace}_{name}_*/main.log")
        return max(found, key=os.path.getmtime, default=None)

    def _is_running(self, namespace: str, name: str) -> bool:
        """Whether a pod of this name has not ended yet."""
        pods = (worker.pod for worker in self._workers.values() if not worker.silent)
        wanted = (namespace, name)
        return any((p["metadata"]["namespace"], p["metadata"]["name"]) == wanted for p in pods)

    async def _learn_nodes(self) -> None:
        listed = await self.ask(lambda: self._client.get(NODES.path()))
        for node in listed.ok()["items"]:
            name = node["metadata"]["name"]
            if self._is_ours(name) and name not in self._rooms:
                amounts = node["status"]["allocatable"]
                room = {key: amount_of(text) for key, text in amounts.items()}
                self._rooms[name] = _Room(room, {})
                if self._logs is not None:
                    await self._tell_node(name, self._logs.status)

    async def _tell_node(self, name: str, status: Json) -> None:
        path = NODES.path(name=name, subresource="status")
        await self.ask(lambda: self._client.patch(path, {"status": status}, STRATEGIC))

    def _is_ours(self, node: str) -> bool:
        return bool(node) and (self._named is None or node in self._named)

    def _start(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failures.append(error)

    async def _follow(self) -> None:
        """List and watch all pods, again and again."""
        while True:
            with contextlib.suppress(*_SERVER_TROUBLE):
                await self._list_and_watch()
            await asyncio.sleep(_RETRY_S)

    async def _list_and_watch(self) -> None:
        listed = (await self.ask(lambda: self._client.get(PODS.path()))).ok()
        there = {pod["metadata"]["uid"] for pod in listed["items"]}
        for uid in self._workers.keys() - there:
            self._workers[uid].vanish()
        for pod in listed["items"]:
            self._note(pod)
        version = listed["metadata"]["resourceVersion"]
        query = {"resourceVersion": version, "timeoutSeconds": _WATCH_S}
        async with self._client.watch(PODS.path(), **query) as watch:
            if watch.status != HTTPStatus.OK:
                # 429 while the server still fills its cache, 5xx in trouble: later again.
                return
            while (event := await watch.next(_WATCH_S + 60)) is not None:
                if event["type"] == "ERROR":
                    return
                if event["type"] == "DELETED":
                    worker = self._workers.get(event["object"]["metadata"]["uid"])
                    if worker is not None:
                        worker.vanish()
                else:
                    self._note(event["object"])

    def _note(self, pod: Json) -> None:
        node, uid = pod["spec"].get("nodeName", ""), pod["metadata"]["uid"]
        if not self._is_ours(node):
            return
        worker = self._workers.get(uid)
        if worker is not None:
            worker.see(pod)
            return
        terminal = pod["status"].get("phase") in TERMINAL
        if not terminal or "deletionTimestamp" in pod["metadata"]:
            worker = _Worker(self, pod)
            self._workers[uid] = worker
            self._start(self._work(worker))

    async def _work(self, worker: _Worker) -> None:
        try:
            await worker.live()
        finally:
            del self._workers[worker.uid]

    async def take_room(self, pod: Json) -> tuple[str, str]:
        """Take a pod's room on its node; reason and message if there is too little, else "".

        A pod on a node that does not exist is never taken: there is no kubelet.
        """
        node = pod["spec"]["nodeName"]
        if node not in self._rooms:
            await self._learn_nodes()
        room = self._rooms.get(node)
        if room is None:
            await asyncio.Event().wait()
            raise AssertionError("nobody sets this event")
        return room.take(requested(pod))

    def free_room(self, pod: Json) -> None:
        """Give back what `take_room` took."""
        self._rooms[pod["spec"]["nodeName"]].free(requested(pod))

    @property
    def pretence(self) -> Pretence | None:
        """What pods do here instead of running."""
        return self._pretence

    async def ask(self, act: Callable[[], Awaitable[Reply]]) -> Reply:
        """A request, repeated until the server really answers it."""
        while True:
            with contextlib.suppress(*_SERVER_TROUBLE):
                async with self._slots:
                    reply = await act()
                if reply.status not in (429, 500, 503, 504):
                    return reply
            await asyncio.sleep(_RETRY_S)

    async def tell(self, pod: Json, status: Json) -> bool:
        """Write a pod's status; whether the pod is still there."""
        metadata = pod["metadata"]
        path = PODS.path(metadata["namespace"], metadata["name"], "status")
        body = {"metadata": {"uid": metadata["uid"]}, "status": status}
        reply = await self.ask(lambda: self._client.patch(path, body, STRATEGIC))
        # 422: the name belongs to another pod by now.
        return reply.status not in (404, 409, 422)

    async def confirm(self, pod: Json) -> None:
        """Say that nothing of a deleted pod is left here."""
        metadata = pod["metadata"]
        path = PODS.path(metadata["namespace"], metadata["name"])
        body = {"gracePeriodSeconds": 0, "preconditions": {"uid": metadata["uid"]}}
        await self.ask(lambda: self._client.delete(path, body))

    async def run(self, pod: Json) -> asyncio.subprocess.Process:
        """Start a pod's process.

        Raises:
            NotRunnableError: it cannot be started.
        """
        metadata = pod["metadata"]
        name = f"{metadata['namespace']}_{metadata['name']}_{metadata['uid']}"
        folder = self._folder / name
        folder.mkdir(parents=True, exist_ok=True)
        launch = launch_of(pod, folder, self._environment)
        with (folder / "main.log").open("ab") as log:
            try:
                return await asyncio.create_subprocess_exec(
                    *launch.argv,
                    env=dict(launch.env),
                    cwd=launch.folder,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    preexec_fn=die_with_parent,
                )
            except OSError as error:
                raise NotRunnableError(str(error)) from error


class _Worker:
    """One pod, from its binding to its end."""

    def __init__(self, kubelet: Kubelet, pod: Json) -> None:
        self.uid: str = pod["metadata"]["uid"]
        self.pod = pod
        self._kubelet = kubelet
        self._changed = asyncio.Event()
        self.silent = False
        self._gone = False
        self._started = ""

    def see(self, pod: Json) -> None:
        """A newer form of the pod."""
        self.pod = pod
        self._changed.set()

    def vanish(self) -> None:
        """The pod is not there any more."""
        self._gone = True
        self._changed.set()

    @property
    def _leaving(self) -> bool:
        return self._gone or "deletionTimestamp" in self.pod["metadata"]

    async def live(self) -> None:
        """Do everything for the pod."""
        if not self._leaving:
            await self._admitted()
        while not self._leaving:
            await self._wait(None)
        if not self._gone:
            await self._kubelet.confirm(self.pod)

    async def _admitted(self) -> None:
        name = f"{self.pod['metadata']['namespace']}/{self.pod['metadata']['name']}"
        if self.pod["status"].get("phase") == "Running" and self._kubelet.pretence is None:
            # Of an earlier life of this kubelet, which took its processes along.
            await self._end(_KILLED, "ContainerStatusUnknown")
            return
        reason, message = await self._kubelet.take_room(self.pod)
        if reason:
            self._kubelet.rejected.append(name)
            failed = {"phase": "Failed", "reason": reason, "message": message}
            await self._kubelet.tell(self.pod, failed)
            return
        self._kubelet.admitted.append(name)
        try:
            if self._kubelet.pretence is None:
                await self._really()
            else:
                await self._pretended(self._kubelet.pretence)
        finally:
            self._kubelet.free_room(self.pod)

    async def _pretended(self, pretence: Pretence) -> None:
        await self._running()
        now = asyncio.get_running_loop().time
        until = math.inf if pretence.run_s is None else now() + pretence.run_s
        while not self._leaving and (left_s := until - now()) > 0:
            await self._wait(None if left_s == math.inf else left_s)
        await self._end(_KILLED if self._leaving else pretence.exit_code)

    async def _really(self) -> None:
        try:
            process = await self._kubelet.run(self.pod)
        except NotRunnableError as error:
            failed = {"phase": "Failed", "reason": "StartError", "message": str(error)}
            await self._kubelet.tell(self.pod, failed)
            return
        try:
            ended = asyncio.ensure_future(process.wait())
            await self._running()
            while not ended.done() and not self._leaving:
                await self._wait(None, ended)
            if not ended.done():
                await self._stop(process, ended)
            code = await ended
        finally:
            # A container's end takes all its processes along.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
            self.silent = True
        await self._end(128 - code if code < 0 else code)

    async def _stop(self, process: asyncio.subprocess.Process, ended: asyncio.Future[int]) -> None:
        """SIGTERM, the grace period (which may be shortened meanwhile), SIGKILL."""
        now = asyncio.get_running_loop().time
        began = now()
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        while not ended.done() and not self._gone:
            grace_s = self.pod["metadata"].get("deletionGracePeriodSeconds", 0)
            left_s = began + grace_s - now()
            if left_s <= 0:
                break
            await self._wait(left_s, ended)
        if not ended.done():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    async def _wait(self, limit_s: float | None, ended: asyncio.Future[int] | None = None) -> None:
        """Until the pod changes, its process ends or the time is up."""
        if self._leaving and ended is None:
            return
        changed = asyncio.ensure_future(self._changed.wait())
        awaited: list[asyncio.Future[Any]] = [changed] if ended is None else [changed, ended]
        try:
            await asyncio.wait(awaited, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            changed.cancel()
        self._changed.clear()

    async def _running(self) -> None:
        self._started = _now()
        conditions = [
            {"type": kind, "status": "True", "lastTransitionTime": self._started}
            for kind in ("Initialized", "ContainersReady", "Ready")
        ]
        status = {
            "phase": "Running",
            "startTime": self._started,
            "hostIP": "127.0.0.1",
            "podIP": "127.0.0.1",
            "conditions": conditions,
            "containerStatuses": [self._container({"running": {"startedAt": self._started}})],
        }
        if not await self._kubelet.tell(self.pod, status):
            self.vanish()

    async def _end(self, code: int, reason: str = "") -> None:
        if self._gone:
            return
        state = {
            "exitCode": code,
            "reason": reason or ("Error" if code else "Completed"),
            "startedAt": self._started or _now(),
            "finishedAt": _now(),
        }
        conditions = [{"type": kind, "status": "False"} for kind in ("ContainersReady", "Ready")]
        status = {
            "phase": "Failed" if code else "Succeeded",
            "conditions": conditions,
            "containerStatuses": [self._container({"terminated": state})],
        }
        await self._kubelet.tell(self.pod, status)

    def _container(self, state: Json) -> Json:
        container = self.pod["spec"]["containers"][0]
        running = "running" in state
        return {
            "name": container["name"],
            "image": container["image"],
            "imageID": "",
            "ready": running,
            "started": running,
            "restartCount": 0,
            "state": state,
        }


def _now() -> str:
    return str(iso(SystemClock().now()))


@contextmanager
def running_kubelet(
    access: Access,
    nodes: Iterable[str] | None = None,
    *,
    folder: Path,
    pretence: Pretence | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Kubelet]:
    """Kubelets in a thread and loop of their own; see `Kubelet`."""
    with loop_thread("fake-kubelet") as loop:
        kubelet = loop.do(
            lambda: Kubelet(
                access, nodes, folder=folder, pretence=pretence, environment=environment
            )
        )
        with loop.inside(kubelet):
            yield kubelet
