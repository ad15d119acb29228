"""A real daemon on a fake API server that goes wrong all the time, with an oracle that sees all.

Gangs come, run and end; users delete gangs and single pods; nodes come, go and are cordoned.
Whoever made a gang makes it anew when it was torn down, as controllers do. Once enough has gone
wrong the server behaves, and everything that was asked for must come about, and the daemon's books
must say what the cluster shows.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from support.daemon import UNFINISHED, DaemonProcess
from support.kubernetes import objects
from support.kubernetes.client import MERGE, Json
from support.kubernetes.deployment import daemon_on
from support.kubernetes.fake_server import FakeApiServer, RunningFake, running_fake
from support.kubernetes.faults import STREAM_FAULTS, Fault, Faults
from support.kubernetes.ground import Ground
from support.kubernetes.kubelet import Pretence, running_kubelet
from support.kubernetes.oracle import Oracle
from support.kubernetes.refusals import RefusedError
from support.kubernetes.resources import NODES, PODS, Target

GPU = "nvidia.com/gpu"
_NAMESPACE = "default"
_DAEMON = "haversack-daemon"
_TICK_S = 0.05
_GPUS = 8
_STEADY_NODES, _STEADY_GANGS, _STEADY_SIZE = 4, 8, 4
_WORK_NODES, _WORK_NODES_EVER = 8, 1000
_RUN_S = 0.5

CHANCES: Mapping[Fault, float] = {
    **dict.fromkeys(Fault, 0.02),
    # Few requests are watches; many events pass through each of them.
    Fault.WATCH_GONE: 0.1,
    Fault.WATCH_EXPIRED: 0.1,
    Fault.LIST_STALE: 0.3,
    **dict.fromkeys(STREAM_FAULTS, 0.01),
    Fault.WATCH_SILENT: 0.004,
}
"""Of each fault, each time that it could happen."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much goes wrong.

    Attributes:
        faults: at least so many in all.
        each: at least so many of every kind.
        open_gangs: gangs that are under way at once.
        limit_s: of the troubled phase.
        settle_s: how long all may take to come right afterwards.
        relist_s: the daemon lists the cluster whole so often; swallowed events are lost till then.
    """

    faults: int = 2000
    each: int = 20
    open_gangs: int = 16
    limit_s: float = 600.0
    settle_s: float = 60.0
    relist_s: float = 4.0


@dataclass(frozen=True, slots=True)
class Report:
    """What came of it.

    Attributes:
        counts: faults of each kind.
        bindings: pods that were bound.
        gangs: gangs that ran to their end.
        remade: gangs that were made anew, because they were torn down.
        troubled_s: how long the server misbehaved.
        settled_s: from then until all had come right.
        last: what came right last.
        violations: what must not be; empty if all is well.
    """

    counts: Mapping[Fault, int]
    bindings: int
    gangs: int
    remade: int
    troubled_s: float
    settled_s: float
    last: str
    violations: Sequence[str]


@dataclass(slots=True)
class _Gang:
    """One gang that somebody wants to run.

    Attributes:
        made: how often it was made; part of its pods' names.
        leaving: its pods are being deleted.
        unwanted: it is not made again.
    """

    name: str
    size: int
    gpus: int
    steady: bool
    made: int = 0
    leaving: bool = False
    unwanted: bool = False

    @property
    def label(self) -> str:
        return f"{self.name}-{self.made}"

    def pods(self) -> list[Json]:
        role = "steady" if self.steady else "work"
        return objects.gang(self.label, self.size, gpus=self.gpus, nodeSelector={"role": role})


@dataclass(slots=True)
class _World:
    """Who uses the cluster. All of it happens in the server's loop, and meets no faults."""

    fake: FakeApiServer
    dice: np.random.Generator
    open_gangs: int
    gangs: dict[str, _Gang] = field(default_factory=dict)
    done: int = 0
    remade: int = 0
    _nodes: list[str] = field(default_factory=list)
    _cordoned: set[str] = field(default_factory=set)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)
    _node_numbers: itertools.count[int] = field(default_factory=itertools.count)

    def begin(self) -> None:
        """Nodes, and somebody else's pods on some of them."""
        for place in range(_STEADY_NODES):
            name = f"steady-{place}"
            self.fake.create(objects.node(name, gpus=_GPUS, labels={"role": "steady"}))
            self._stranger(name)
        for _ in range(_WORK_NODES):
            self._add_node()
        for place in range(_STEADY_GANGS):
            name = f"steady-{place}"
            self.gangs[name] = _Gang(name, _STEADY_SIZE, 1, steady=True)

    def turn(self, *, quiet: bool) -> None:
        """A moment passes; `quiet` asks for nothing new."""
        pods: defaultdict[str, list[Json]] = defaultdict(list)
        for pod in self.fake.objects(PODS):
            pods[(pod["metadata"].get("labels") or {}).get("haversack.dev/gang", "")].append(pod)
        for gang in tuple(self.gangs.values()):
            self._look_after(gang, pods.get(gang.label, []))
        if quiet:
            return
        while sum(not gang.steady for gang in self.gangs.values()) < self.open_gangs:
            name = f"gang-{next(self._numbers)}"
            size, gpus = int(self.dice.integers(1, 7)), int(self.dice.integers(1, 3))
            self.gangs[name] = _Gang(name, size, gpus, steady=False)
        self._meddle(pods)

    def calm(self) -> None:
        """Nothing is asked for any more, and nothing is in the way of what was."""
        for name in tuple(self._cordoned):
            self._cordon(name, off=True)
        for pod in self.fake.objects(PODS):
            if pod["spec"]["schedulerName"] == "stranger":
                self._delete(pod, now=True)

    def open_work(self) -> list[str]:
        """Gangs that have still to run."""
        return [gang.label for gang in self.gangs.values() if not gang.steady]

    def _look_after(self, gang: _Gang, pods: Sequence[Json]) -> None:
        """What a controller does."""
        if not gang.made or (gang.leaving and not pods):
            if gang.unwanted:
                del self.gangs[gang.name]
                return
            self.remade += gang.made > 0
            gang.made, gang.leaving = gang.made + 1, False
            for pod in gang.pods():
                self.fake.create(pod)
            return
        phases = Counter(pod["status"].get("phase") for pod in pods)
        if phases["Succeeded"] == gang.size and not gang.leaving:
            self.done += 1
            gang.leaving = gang.unwanted = True
        elif phases["Failed"] or len(pods) < gang.size:
            gang.leaving = True
        if gang.leaving:
            for pod in pods:
                self._delete(pod, now=False)

    def _meddle(self, pods: Mapping[str, Sequence[Json]]) -> None:
        """What users and operators do."""
        dice = self.dice
        work = [gang for gang in self.gangs.values() if not gang.steady]
        chosen = work[int(dice.integers(len(work)))]
        theirs = pods.get(chosen.label, ())
        node = self._nodes[int(dice.integers(len(self._nodes)))]
        self._beat(node)
        act = dice.random()
        if act < 0.04:
            chosen.leaving = chosen.unwanted = True
        elif act < 0.08 and theirs:
            self._delete(theirs[int(dice.integers(len(theirs)))], now=False)
        elif act < 0.10 and len(self._nodes) > _WORK_NODES // 2:
            self._remove_node(node)
        elif act < 0.12 and len(self._nodes) < _WORK_NODES:
            self._add_node()
        elif act < 0.16:
            self._cordon(node, off=node in self._cordoned)
        elif act < 0.18:
            self._stranger(node)

    def _add_node(self) -> None:
        name = f"work-{next(self._node_numbers)}"
        self._nodes.append(name)
        self.fake.create(objects.node(name, gpus=_GPUS, labels={"role": "work"}))

    def _remove_node(self, name: str) -> None:
        """With its pods, as the garbage collector of pods does it."""
        self._nodes.remove(name)
        self._cordoned.discard(name)
        self.fake.operations.delete(Target(NODES, "", name), {})
        for pod in self.fake.objects(PODS):
            if pod["spec"].get("nodeName") == name:
                self._delete(pod, now=True)

    def _beat(self, name: str) -> None:
        """A sign of life: one more event."""
        patch = {"metadata": {"annotations": {"beat": str(next(self._numbers))}}}
        self.fake.operations.patch(Target(NODES, "", name), MERGE, patch)

    def _cordon(self, name: str, *, off: bool) -> None:
        patch = {"spec": {"unschedulable": None if off else True}}
        self.fake.operations.patch(Target(NODES, "", name), MERGE, patch)
        (self._cordoned.discard if off else self._cordoned.add)(name)

    def _stranger(self, node: str) -> None:
        """Another scheduler's pod: one GPU of a node that has room, or of a steady one."""
        name = f"stranger-{next(self._numbers)}"
        gpus = 1 if node.startswith("steady") else 0
        self.fake.create(objects.pod(name, gpus=gpus, scheduler="stranger", nodeName=node))

    def _delete(self, pod: Json, *, now: bool) -> None:
        metadata = pod["metadata"]
        target = Target(PODS, metadata["namespace"], metadata["name"])
        now = now or pod["status"].get("phase") in ("Succeeded", "Failed")
        # It may be gone since it was read.
        with contextlib.suppress(RefusedError):
            self.fake.operations.delete(
                target,
                {"preconditions": {"uid": metadata["uid"]}}
                | ({"gracePeriodSeconds": 0} if now else {}),
            )


def fault_run(seed: int, size: Size, folder: Path) -> Report:
    """Run it.

    Args:
        seed: of the faults and of what users do; the daemon's timing is its own.
        size: how much.
        folder: for the daemon's data and log.
    """
    faults = Faults(seed, victim=_DAEMON, delay_s=0.2)
    fake, oracle = FakeApiServer(faults=faults, bookmark_every_s=0.5), Oracle()
    fake.witness(oracle)
    names = {
        False: [f"work-{number}" for number in range(_WORK_NODES_EVER)],
        True: [f"steady-{number}" for number in range(_STEADY_NODES)],
    }
    with contextlib.ExitStack() as stack:
        running = stack.enter_context(running_fake(fake))
        access = running.do(lambda fake: fake.access_as(_DAEMON))
        world = _World(fake, np.random.Generator(np.random.PCG64(seed)), size.open_gangs)
        running.do(lambda _: world.begin())
        for steady, of in names.items():
            pretence = Pretence(run_s=None if steady else _RUN_S)
            stack.enter_context(
                running_kubelet(running.access, of, folder=folder, pretence=pretence)
            )
        ground = Ground(access, lambda _: access, lambda: None, real=False)
        pace = {"KUBERNETES__RELIST_S": f"{size.relist_s}", "KUBERNETES__SILENCE_S": "2"}
        daemon = daemon_on(ground, folder, **pace)
        daemon.start()
        stack.callback(daemon.kill)
        return _Run(running, world, oracle, daemon, size).all()


@dataclass(frozen=True, slots=True)
class _Run:
    running: RunningFake
    world: _World
    oracle: Oracle
    daemon: DaemonProcess
    size: Size

    def all(self) -> Report:
        """Trouble, then peace."""
        faults = self.running.fake.faults
        began_s = time.monotonic()
        self.running.do(lambda _: faults.begin(CHANCES))
        while not self._enough() and time.monotonic() - began_s < self.size.limit_s:
            self._turn(quiet=False)
        counts = self.running.do(lambda _: dict(faults.counts))
        self.running.do(lambda _: faults.stop())
        self.running.do(lambda _: self.world.calm())
        troubled_s = time.monotonic() - began_s
        settled_s, last = 0.0, ""
        while (left := self._left()) and settled_s < self.size.settle_s:
            last = left[0]
            self._turn(quiet=True)
            settled_s = time.monotonic() - began_s - troubled_s
        violations = [*self.running.do(lambda _: list(self.oracle.violations)), *left]
        if self.daemon.stop() != 0:
            violations.append("the daemon did not end in good order")
        return Report(
            counts=counts,
            bindings=self.oracle.bindings,
            gangs=self.world.done,
            remade=self.world.remade,
            troubled_s=troubled_s,
            settled_s=settled_s,
            last=last,
            violations=violations,
        )

    def _turn(self, *, quiet: bool) -> None:
        if not self.daemon.alive:
            raise AssertionError(f"the daemon is dead:\n{self.daemon.log_tail()}")
        self.running.do(lambda _: self.world.turn(quiet=quiet))
        time.sleep(_TICK_S)

    def _enough(self) -> bool:
        counts = self.running.do(lambda fake: Counter(fake.faults.counts))
        rare = min(counts[fault] for fault in Fault)
        return counts.total() >= self.size.faults and rare >= self.size.each

    def _left(self) -> list[str]:
        """What has not come right yet."""
        left = [f"{gang} has not run" for gang in self.running.do(lambda _: self.world.open_work())]
        pods = self.running.do(lambda fake: fake.objects(PODS))
        left += [
            f"{pod['metadata']['name']} is {pod['status'].get('phase')}"
            for pod in pods
            if pod["status"].get("phase") != "Running"
        ]
        return left or self._books(len(pods))

    def _books(self, pods: int) -> list[str]:
        """Where the daemon's books differ from the cluster."""
        if pods != _STEADY_GANGS * _STEADY_SIZE:
            return [f"{pods} pods are left instead of {_STEADY_GANGS * _STEADY_SIZE}"]
        wrong = []
        with self.daemon.http() as client:
            query = {"limit": "200", "state": list(UNFINISHED)}
            jobs = client.get("/api/v1/jobs", params=query).json()["items"]
            nodes = client.get("/api/v1/nodes", params={"limit": "200"}).json()["items"]
        states = Counter(job["state"] for job in jobs)
        if states != {"RUNNING": _STEADY_GANGS}:
            wrong.append(f"jobs {dict(states)}, and {_STEADY_GANGS} gangs run")
        for node in nodes:
            used = self.oracle.used(node["name"], GPU)
            if node["gpus_used"] != used:
                wrong.append(f"{node['name']}: {node['gpus_used']} GPUs held, {used} used")
        there = {node["metadata"]["name"] for node in self.running.do(_nodes)}
        if {node["name"] for node in nodes} != there:
            wrong.append("the daemon's nodes are not the cluster's")
        return wrong


def _nodes(fake: FakeApiServer) -> list[Json]:
    return fake.objects(NODES)
