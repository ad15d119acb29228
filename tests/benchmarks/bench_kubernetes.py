"""How fast gangs and pods are bound on a real API server, beside kube-scheduler on the same one.

- 3,000 one-GPU pods on 500 nodes of 8 GPUs, all there before the scheduler starts: pods a second
  from the start of its process to the last binding, as a watch sees them. At least three times
  kube-scheduler's, and no node is over-committed.
- 400 gangs of 8 one-GPU pods with room for 350 of them: exactly 350 whole gangs, no part of one.
- A scheduler that has been up for a while, on 500 nodes: a gang of 512 one-GPU pods is bound whole
  less than 5 s after its last pod was made; then, of pods that come at 200 a second, 99 of 100 are
  bound less than 1 s after they were asked for.
- Pods that we pin and kube-scheduler binds: at least 0.25 times as many a second as it binds alone,
  and no node is over-committed.

Both schedulers get the same limit of requests (5,000 a second). Needs etcd, kube-apiserver and
kube-scheduler where envtest looks for them; exits 1 when a figure is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.daemon import DaemonProcess
from support.kubernetes import objects
from support.kubernetes.applying import BASE, DEPLOY, apply, component, rendered
from support.kubernetes.client import Client, Json
from support.kubernetes.real_server import (
    ADMIN,
    SERVICE_ACCOUNT,
    ControlPlane,
    NoControlPlaneError,
    control_plane,
)

from scheduler.execution.kubernetes.labels import PLACEMENT_GATE

GPUS = 8
RATIO_MIN = 3.0
PINS_RATIO_MIN = 0.25
PATIENCE_S = 300.0
AT_ONCE = 64
GANG = 512
GANG_MAX_S = 5.0
ARRIVALS_PER_S = 200
ARRIVALS_S = 15.0
P99_MAX_S = 1.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What a watch saw.

    Attributes:
        bound: node of each pod that got one, by name.
        last_s: seconds from the scheduler's start to the last binding.
        overcommitted: nodes with more GPUs asked for than they have.
    """

    bound: dict[str, str]
    last_s: float
    overcommitted: int


async def _create(plane: ControlPlane, path: str, documents: list[Json]) -> None:
    slots = asyncio.Semaphore(AT_ONCE)
    async with Client(plane.access) as client:

        async def one(document: Json) -> None:
            async with slots:
                (await client.post(path, document)).ok()

        await asyncio.gather(*map(one, documents))


async def _pods_seen(
    plane: ControlPlane, namespace: str, patience: Callable[[], float]
) -> AsyncGenerator[Json, None]:
    """Pods of a namespace as they come and change, until nothing happens for `patience()` s.

    A healthy server may close a watch at any time: it goes on where it was.
    """
    version = "0"
    async with Client(plane.access) as client:
        while True:
            path = f"/api/v1/namespaces/{namespace}/pods"
            async with client.watch(path, resourceVersion=version) as watch:
                while True:
                    try:
                        event = await watch.next(within_s=patience())
                    except TimeoutError:
                        return
                    if event is None or event["type"] == "ERROR":
                        version = version if event is None else "0"
                        break
                    version = event["object"]["metadata"]["resourceVersion"]
                    yield event["object"]


async def _bindings(plane: ControlPlane, namespace: str, wanted: int, quiet_s: float) -> Seen:
    """Follow the namespace's pods until so many are bound, or nothing happens for a while."""
    bound: dict[str, str] = {}
    began = last = time.monotonic()
    pods = _pods_seen(plane, namespace, lambda: quiet_s if bound else PATIENCE_S)
    async with contextlib.aclosing(pods):
        async for pod in pods:
            node, name = pod.get("spec", {}).get("nodeName"), pod["metadata"]["name"]
            if node and name not in bound:
                bound[name] = node
                last = time.monotonic()
                if len(bound) == wanted:
                    break
    load = Counter(bound.values())
    return Seen(bound, last - began, sum(count > GPUS for count in load.values()))


async def _bindings_on(plane: ControlPlane, nodes: list[Json], wanted: int) -> Seen:
    """What is bound from the moment at which these nodes come."""
    watching = asyncio.create_task(_bindings(plane, "default", wanted, quiet_s=30.0))
    await _create(plane, "/api/v1/nodes", nodes)
    return await watching


@contextlib.contextmanager
def _ours(plane: ControlPlane, *, user: str = ADMIN, wait: bool = False) -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder:
        daemon = DaemonProcess(
            Path(folder) / "data",
            settings={"KUBERNETES__KUBECONFIG": str(plane.kubeconfig(user))},
            arguments=("--executor", "kubernetes"),
        )
        daemon.start(wait=wait)
        try:
            yield
        finally:
            daemon.stop()


@contextlib.contextmanager
def _theirs(plane: ControlPlane) -> Iterator[None]:
    plane.start_scheduler()  # its defaults here: 5,000 requests a second
    try:
        yield
    finally:
        plane.stop("kube-scheduler")


def _nodes(count: int) -> list[Json]:
    return [objects.node(f"node-{place:04d}", gpus=GPUS) for place in range(count)]


def rate(nodes: int, pods: int, *, ours: bool) -> tuple[float, Seen]:
    """Pods a second, on a control plane of its own."""
    scheduler = "haversack" if ours else "default-scheduler"
    with control_plane() as plane:
        asyncio.run(_create(plane, "/api/v1/nodes", _nodes(nodes)))
        wanted = [objects.pod(f"pod-{i:05d}", gpus=1, scheduler=scheduler) for i in range(pods)]
        asyncio.run(_create(plane, "/api/v1/namespaces/default/pods", wanted))
        with _ours(plane) if ours else _theirs(plane):
            seen = asyncio.run(_bindings(plane, "default", pods, quiet_s=30.0))
    return len(seen.bound) / max(seen.last_s, 1e-9), seen


def pins(nodes: int, pods: int) -> tuple[float, Seen]:
    """Gated pods a second that we pin and kube-scheduler binds; both are up before nodes come."""
    with control_plane() as plane:
        # kube-scheduler is the administrator here, whose bindings must not be fenced.
        for document in rendered(BASE):
            apply(plane, document)
        for name in ("admission", "preemption"):
            for document in component(DEPLOY / "kubernetes" / "components" / name):
                apply(plane, document)
        gates, theirs = [PLACEMENT_GATE], "default-scheduler"
        wanted = [
            objects.pod(f"pod-{i:05d}", gpus=1, scheduler=theirs, gates=gates) for i in range(pods)
        ]
        asyncio.run(_create(plane, "/api/v1/namespaces/default/pods", wanted))
        with _theirs(plane), _ours(plane, user=SERVICE_ACCOUNT, wait=True):
            seen = asyncio.run(_bindings_on(plane, _nodes(nodes), pods))
    return len(seen.bound) / max(seen.last_s, 1e-9), seen


def gangs(nodes: int, wanted: int, room: int) -> tuple[int, int, float]:
    """Whole gangs, gangs bound in part, seconds."""
    with control_plane() as plane:
        asyncio.run(_create(plane, "/api/v1/nodes", _nodes(nodes)))
        # Whoever holds the rest of the GPUs leaves room for so many gangs of eight.
        filler = [
            objects.pod(f"filler-{i:04d}", gpus=GPUS, scheduler="x", nodeName=f"node-{i:04d}")
            for i in range(nodes - room)
        ]
        asyncio.run(_create(plane, "/api/v1/namespaces/kube-system/pods", _moved(filler)))
        pods = [pod for i in range(wanted) for pod in objects.gang(f"gang-{i:03d}", 8, gpus=1)]
        asyncio.run(_create(plane, "/api/v1/namespaces/default/pods", pods))
        with _ours(plane):
            seen = asyncio.run(_bindings(plane, "default", room * 8 + 1, quiet_s=15.0))
    sizes = Counter(name.rsplit("-", 1)[0] for name in seen.bound)
    whole = sum(size == 8 for size in sizes.values())
    return whole, len(sizes) - whole, seen.last_s


async def _arrive(client: Client, count: int, per_s: float) -> dict[str, float]:
    """Make pods at an even rate, whatever the answers take; when each was asked for."""
    began = time.monotonic()
    asked: dict[str, float] = {}

    async def one(place: int) -> None:
        await asyncio.sleep(began + place / per_s - time.monotonic())
        name = f"late-{place:05d}"
        asked[name] = time.monotonic()
        document = objects.pod(name, gpus=1, scheduler="haversack")
        (await client.post("/api/v1/namespaces/default/pods", document)).ok()

    await asyncio.gather(*map(one, range(count)))
    return asked


async def _until_bound(plane: ControlPlane, prefix: str, wanted: int) -> dict[str, float]:
    """When each pod of that prefix is seen to be bound; fewer than wanted if nothing happens."""
    bound: dict[str, float] = {}
    pods = _pods_seen(plane, "default", lambda: 30.0)
    async with contextlib.aclosing(pods):
        async for pod in pods:
            name = pod["metadata"]["name"]
            if name.startswith(prefix) and pod["spec"].get("nodeName"):
                bound.setdefault(name, time.monotonic())
                if len(bound) == wanted:
                    break
    return bound


async def _while_up(plane: ControlPlane) -> tuple[float, float, int]:
    """Seconds that the gang took, the 99th percentile of arrivals, and pods never bound."""
    pods = objects.gang("big", GANG, gpus=1)
    watching = asyncio.create_task(_until_bound(plane, "big-", GANG))
    await _create(plane, "/api/v1/namespaces/default/pods", pods)
    made = time.monotonic()
    bound = await watching
    lost = GANG - len(bound)
    gang_s = max(bound.values(), default=float("inf")) - made
    count = int(ARRIVALS_PER_S * ARRIVALS_S)
    watching = asyncio.create_task(_until_bound(plane, "late-", count))
    async with Client(plane.access) as client:
        asked = await _arrive(client, count, ARRIVALS_PER_S)
    seen = await watching
    lost += count - len(seen)
    waits = sorted(seen[name] - asked[name] for name in seen)
    return gang_s, waits[int(len(waits) * 0.99)] if waits else float("inf"), lost


def steady(nodes: int) -> tuple[float, float, int]:
    """As `_while_up`, on a control plane and a daemon of its own."""
    with control_plane() as plane:
        asyncio.run(_create(plane, "/api/v1/nodes", _nodes(nodes)))
        with _ours(plane, wait=True):
            return asyncio.run(_while_up(plane))


def _moved(pods: list[Json]) -> list[Json]:
    for pod in pods:
        pod["metadata"]["namespace"] = "kube-system"
    return pods


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _rates(nodes: int, pods: int, rounds: int) -> list[str]:
    failures = []
    for _ in range(rounds):
        theirs, _ = rate(nodes, pods, ours=False)
        mine, seen = rate(nodes, pods, ours=True)
        _say(
            f"{pods} pods on {nodes} nodes: kube-scheduler {theirs:.0f} pods/s,"
            f" Haversack {mine:.0f} pods/s ({mine / theirs:.2f}x);"
            f" {seen.overcommitted} nodes over-committed"
        )
        if mine < RATIO_MIN * theirs:
            failures.append(f"{mine / theirs:.2f} times kube-scheduler's rate")
        if seen.overcommitted or len(seen.bound) < pods:
            failures.append(f"{seen.overcommitted} over-committed, {len(seen.bound)} bound")
    return failures


def _pins(nodes: int, pods: int) -> list[str]:
    theirs, _ = rate(nodes, pods, ours=False)
    both, seen = pins(nodes, pods)
    _say(
        f"gate and pin, {pods} pods on {nodes} nodes: {both:.0f} pods/s, kube-scheduler alone"
        f" {theirs:.0f} pods/s ({both / theirs:.2f}x); {seen.overcommitted} nodes over-committed"
    )
    if both < PINS_RATIO_MIN * theirs or seen.overcommitted or len(seen.bound) < pods:
        return [f"gate and pin: {both / theirs:.2f} times kube-scheduler's rate alone"]
    return []


def _gangs(nodes: int) -> list[str]:
    whole, partial, took_s = gangs(nodes, 400, 350)
    _say(f"400 gangs of 8, room for 350: {whole} whole, {partial} partial, {took_s:.1f} s")
    return [] if (whole, partial) == (350, 0) else [f"{whole} whole gangs, {partial} partial"]


def _steady(nodes: int) -> list[str]:
    gang_s, p99_s, lost = steady(nodes)
    _say(
        f"while up: a gang of {GANG} bound in {gang_s:.2f} s; {ARRIVALS_PER_S} pods/s for"
        f" {ARRIVALS_S:g} s: 99 of 100 within {p99_s:.2f} s; {lost} never bound"
    )
    failures = []
    if gang_s >= GANG_MAX_S:
        failures.append(f"the gang of {GANG} took {gang_s:.2f} s")
    if p99_s >= P99_MAX_S:
        failures.append(f"99 of 100 arrivals within {p99_s:.2f} s")
    if lost:
        failures.append(f"{lost} pods were never bound")
    return failures


def main() -> int:
    """Run and judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=500)
    parser.add_argument("--pods", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", choices=("rate", "gangs", "steady", "pins"), help="default: all")
    asked = parser.parse_args()
    parts: dict[str, Callable[[], list[str]]] = {
        "rate": lambda: _rates(asked.nodes, asked.pods, asked.rounds),
        "gangs": lambda: _gangs(asked.nodes),
        "steady": lambda: _steady(asked.nodes),
        "pins": lambda: _pins(asked.nodes, asked.pods),
    }
    failures = []
    try:
        for name, part in parts.items():
            if asked.only in (None, name):
                failures += part()
    except NoControlPlaneError as error:
        _say(f"skipped: {error}")
        return 0
    for failure in failures:
        _say(f"MISSED: {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
