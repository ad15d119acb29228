"""Which nodes a pod may use as Haversack sees it, by its own path, beside kube-scheduler's word."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus

from support.clock import ManualClock
from support.kubernetes import objects
from support.kubernetes.client import STRATEGIC, Client, Json
from support.kubernetes.filter_extender import Judge, Judged, judging
from support.kubernetes.real_server import ControlPlane
from support.kubernetes.resources import NODES, PODS, Resource
from support.kubernetes.scenarios import (
    SCHEDULER,
    Placed,
    Population,
    Scenarios,
    Standing,
    runtime_classes,
)

from policies.registry import profile_named
from scheduler.allocation.reach import Reaches
from scheduler.decide import decide
from scheduler.execution.kubernetes import labels
from scheduler.execution.kubernetes.avoiding import Avoided
from scheduler.execution.kubernetes.cluster import Cluster
from scheduler.execution.kubernetes.gathering import ClusterGatherer
from scheduler.execution.kubernetes.lookup import Lookup
from scheduler.execution.kubernetes.marks import attempt_of
from scheduler.execution.kubernetes.nodes import node_of
from scheduler.execution.kubernetes.pods import Pod, pod_of
from scheduler.execution.kubernetes.server import ApiServer
from scheduler.model.job import JobShape, WaitingJob
from scheduler.model.node import Node
from scheduler.model.outside import OutsideGang
from scheduler.model.plan import TaskPlacement
from scheduler.model.ports import Effort
from scheduler.model.quantity import (
    DEFAULT_QUEUE,
    DEFAULT_TENANT,
    AttemptId,
    GpuId,
    JobId,
    UtcSeconds,
)
from scheduler.model.snapshot import LiveAttempt, Snapshot, SnapshotDelta

_RUNTIME_CLASSES = Resource("node.k8s.io", "v1", "runtimeclasses", "RuntimeClass", namespaced=False)
_LAG_S = 10.0
"""Its picture of the cluster lags behind the server's: a difference must stay so long to count."""
_AGAIN_S = 0.2
_DIFFERENCES_MAX = 5
"""So many are enough to look at."""
_NOW = UtcSeconds(1_800_000_000.0)
_REASON = re.compile(r"(\d+) (?:node\(s\) )?(.+?)(?=, \d|\.(?: |$))")


@dataclass(frozen=True, slots=True)
class Ours:
    """What Haversack says of a pod.

    Attributes:
        nodes: those that would do.
        planned: where its decision puts the pod, "" for nowhere.
        why: what it tells the pod that is put nowhere.
    """

    nodes: frozenset[str]
    planned: str
    why: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What both say of one pod.

    Attributes:
        nodes: all of the cluster, by name.
        placed: pods of the cluster.
    """

    pod: Json
    theirs: Judged
    ours: Ours
    nodes: Mapping[str, Json]
    placed: Sequence[Json]

    @property
    def agreed(self) -> bool:
        """Whether they name the same nodes, and our decision takes one of them where it can."""
        planned = self.ours.planned
        sound = planned in self.theirs.nodes if self.theirs.nodes else not planned
        return sound and self.theirs.nodes == self.ours.nodes

    def told(self) -> str:
        """For people: who says what, with the nodes in question."""
        missing, extra = self.theirs.nodes - self.ours.nodes, self.ours.nodes - self.theirs.nodes
        lines = [f"pod {self.pod['spec']}", f"kube-scheduler: {self.theirs.message}"]
        lines += [f"Haversack: planned {self.ours.planned!r}, {self.ours.why}"]
        for what, names in (("only kube-scheduler", missing), ("only Haversack", extra)):
            for name in sorted(names):
                node = self.nodes[name]
                fields = node["metadata"]["labels"], node["spec"], node["status"]["allocatable"]
                lines.append(f"{what} takes {name}: {fields}")
                on_it = (pod for pod in self.placed if pod["spec"].get("nodeName") == name)
                lines += [f"  beside {pod['spec']} {pod['status']}" for pod in on_it]
        return "\n  ".join(lines)


class Picture:
    """A cluster as Haversack has it once it has read all there is."""

    def __init__(self, server: ApiServer, nodes: Iterable[Json], pods: Iterable[Json]) -> None:
        self._cluster = Cluster(told=lambda: None)
        self._gatherer = ClusterGatherer(self._cluster, Lookup(server), Avoided(ManualClock()))
        for raw in nodes:
            self._cluster.node_seen(node_of(raw))
        held = []
        for raw in pods:
            pod = pod_of(raw)
            self._cluster.pod_seen(pod)
            attempt_id = attempt_of(pod)
            if pod.takes_room and attempt_id is not None:
                self._cluster.expect(attempt_id, (str(pod.ref),))
                held.append((attempt_id, pod))
        seen = self._cluster.take_node_changes().seen
        live = tuple(_live(seen, held))
        self._delta = SnapshotDelta(0, 1, nodes=seen, live=live)
        self._snapshot = Snapshot().apply(self._delta)

    async def ours(self, raw: Json) -> Ours:
        """Which nodes the pod may use, and where it would be put."""
        pod = pod_of(raw)
        self._cluster.pod_seen(pod)
        try:
            found = await self._gatherer.gather((pod,), frozenset())
        finally:
            self._cluster.pod_gone(str(pod.ref))
        if not found.gangs:
            return Ours(frozenset(), "", "; ".join(why for _, why in found.waiting))
        return self._decided(found.gangs[0])

    def _decided(self, gang: OutsideGang) -> Ours:
        view = Reaches(self._snapshot.columns.free).view(gang.shape)
        rows = view.reach.some[view.tasks > 0].tolist()
        nodes = self._snapshot.columns.table.nodes
        job = _waiting(gang)
        asked = self._snapshot.apply(SnapshotDelta(1, 2, waiting=(job,)))
        (*_, plan) = decide(asked, profile_named("priority-age"), Effort(), _NOW, seed=0)
        names = {node.id: node.name for node in nodes}
        planned = next((names[p.tasks[0].node_id] for p in plan.placements), "")
        why = "; ".join(reason.message for each in plan.waiting for reason in each.reasons)
        return Ours(frozenset(nodes[row].name for row in rows), planned, why)


def _live(nodes: Iterable[Node], held: Iterable[tuple[AttemptId, Pod]]) -> Iterable[LiveAttempt]:
    """Our pods as the store has them: with the lowest of their node's GPUs, others have the rest.

    The store moves marks of others off the GPUs that it gave away.
    """
    by_name = {node.name: node for node in nodes}
    left: dict[str, list[GpuId]] = {n.name: [gpu.id for gpu in n.gpus] for n in by_name.values()}
    for attempt_id, pod in held:
        node = by_name[pod.node_name]
        gpus = left[node.name]
        chosen, left[node.name] = tuple(gpus[: pod.needs.gpus]), gpus[pod.needs.gpus :]
        needs = pod.needs
        task = TaskPlacement(
            0, node.id, chosen, needs.cpu_milli, needs.memory_mib, extras=pod.extras
        )
        job = _job(JobId(f"job-{attempt_id}"), JobShape(1, needs, extras=pod.extras))
        yield LiveAttempt(attempt_id, job, _NOW, (task,))


def _waiting(gang: OutsideGang) -> WaitingJob:
    return _job(JobId(gang.key), gang.shape)


def _job(job_id: JobId, shape: JobShape) -> WaitingJob:
    return WaitingJob(
        job_id,
        DEFAULT_TENANT,
        DEFAULT_QUEUE,
        priority=0,
        submitted_at=_NOW,
        eligible_at=_NOW,
        shape=shape,
        preemptible=False,
        attempts=0,
        class_key="class",
    )


@dataclass
class Comparison:
    """How scenarios went.

    Attributes:
        agreed: pods on which both named the same nodes.
        differences: the others.
        refused: pods that the API server did not take: no scenarios.
        asked: pairs of pod and node that were judged.
        feasible: those of them that would do.
        reasons: nodes that kube-scheduler turned down, by its own words.
        features: what the scenarios were made of, see `Scenarios`.
    """

    agreed: int = 0
    differences: list[Verdict] = field(default_factory=list)
    refused: int = 0
    asked: int = 0
    feasible: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    features: Counter[str] = field(default_factory=Counter)

    @property
    def judged(self) -> int:
        """Pods that both have judged."""
        return self.agreed + len(self.differences)

    def note(self, verdict: Verdict | None) -> None:
        """One more pod; None for one that the API server did not take."""
        if verdict is None:
            self.refused += 1
            return
        if verdict.agreed:
            self.agreed += 1
        else:
            self.differences.append(verdict)
        self.asked += len(verdict.nodes)
        self.feasible += len(verdict.theirs.nodes)
        _, _, told = verdict.theirs.message.partition(": ")  # 0/16 nodes are available: ...
        for count, reason in _REASON.findall(told):
            self.reasons[reason] += int(count)

    def report(self) -> str:
        """A table for people."""
        lines = [
            f"{self.agreed} of {self.judged} pods agree; the API server refused {self.refused}",
            f"{self.feasible} of {self.asked} pairs of pod and node are feasible",
        ]
        for what, counted in (("turned down", self.reasons), ("drawn", self.features)):
            lines += [f"  {what} {n:6d}  {name}" for name, n in counted.most_common()]
        return "\n".join(lines)


async def compare(
    plane: ControlPlane, namespace: str, *, seed: int, pods: int, each: int
) -> Comparison:
    """Have both judge random pods, one at a time.

    Args:
        plane: where kube-scheduler runs then; nodes and pods of others are judged as well.
        namespace: exists, and is empty.
        seed: of the scenarios.
        pods: how many are judged.
        each: how many of them meet the same cluster.
    """
    scenarios, done = Scenarios(seed, namespace), Comparison()
    async with (
        Client(plane.access) as client,
        ApiServer(plane.access) as server,
        judging(plane, client, SCHEDULER) as judge,
    ):
        for document in runtime_classes():
            reply = await client.post(_RUNTIME_CLASSES.path(), document)
            assert reply.status in (HTTPStatus.CREATED, HTTPStatus.CONFLICT), reply.body
        site = _Site(client, namespace)
        # It must be up before the first cluster is: of one that was made while it started, it has
        # been seen to miss a host port for good.
        first = await site.create(objects.pod("first", scheduler=SCHEDULER))
        assert first is not None
        await judge.judged(first)
        while done.judged < pods and len(done.differences) < _DIFFERENCES_MAX:
            population = scenarios.population()
            await site.fill(population)
            nodes, placed = await site.items(NODES.path()), await site.items("/api/v1/pods")
            court = _Court(site, judge, Picture(server, nodes, placed), nodes, placed)
            for _ in range(min(each, pods - done.judged)):
                done.note(await court.verdict(scenarios.pod(population.nodes)))
            await site.clear(population)
    done.features = scenarios.features
    return done


@dataclass(frozen=True, slots=True)
class _Court:
    """Both, on one cluster."""

    site: _Site
    judge: Judge
    picture: Picture
    nodes: Sequence[Json]
    placed: Sequence[Json]

    async def verdict(self, pod: Json) -> Verdict | None:
        """Have both judge, again while they differ: kube-scheduler may have old news.

        None when the API server does not take the pod.
        """
        by_name = {node["metadata"]["name"]: node for node in self.nodes}
        deadline = time.monotonic() + _LAG_S
        while (raw := await self.site.create(pod)) is not None:
            theirs = await self.judge.judged(raw)
            ours = await self.picture.ours(raw)
            found = Verdict(raw, theirs, ours, by_name, self.placed)
            if found.agreed or time.monotonic() > deadline:
                return found
            await asyncio.sleep(_AGAIN_S)
        return None


@dataclass(frozen=True, slots=True)
class _Site:
    """Where the scenarios are played."""

    client: Client
    namespace: str

    async def items(self, path: str) -> list[Json]:
        found: list[Json] = (await self.client.get(path)).ok()["items"]
        return found

    async def create(self, pod: Json) -> Json | None:
        """The pod as the server made it, or None if it did not take it."""
        body = {**pod, "metadata": {**pod["metadata"], "namespace": self.namespace}}
        reply = await self.client.post(PODS.path(self.namespace), body)
        return reply.body if reply.status == HTTPStatus.CREATED else None

    async def fill(self, population: Population) -> None:
        """Create a cluster."""
        made = (self.client.post(NODES.path(), node) for node in population.nodes)
        for reply in await asyncio.gather(*made):
            reply.ok()
        await asyncio.gather(*map(self._place, population.placed))

    async def _place(self, placed: Placed) -> None:
        """Bind the pod as its standing says; one that the server does not take is left out."""
        made = await self.create(placed.body)
        if made is None:
            return
        name, uid = made["metadata"]["name"], made["metadata"]["uid"]
        marks = {}
        if placed.standing is Standing.OURS:
            marks = {labels.MARKED: uid, labels.ATTEMPT: f"attempt-{name}"}
        binding = objects.binding(name, placed.node_name, uid=uid, annotations=marks)
        path = PODS.path(self.namespace, name)
        (await self.client.post(f"{path}/binding", binding)).ok()
        if placed.standing is Standing.ENDED:
            ended = {"status": {"phase": "Succeeded"}}
            (await self.client.patch(f"{path}/status", ended, STRATEGIC)).ok()
        elif placed.standing is Standing.LEAVING:
            (await self.client.delete(path, {"gracePeriodSeconds": 600})).ok()
        elif placed.resize is not None:
            wished, seen = {"spec": placed.resize.spec}, {"status": placed.resize.status}
            resized = await self.client.patch(f"{path}/resize", wished, STRATEGIC)
            if resized.status != HTTPStatus.FORBIDDEN:  # admission has not heard of the node yet
                resized.ok()
                (await self.client.patch(f"{path}/status", seen, STRATEGIC)).ok()

    async def clear(self, population: Population) -> None:
        """Take the cluster away."""
        pods = await self.items(PODS.path(self.namespace))
        at_once = {"gracePeriodSeconds": 0}
        await asyncio.gather(
            *(
                self.client.delete(PODS.path(self.namespace, pod["metadata"]["name"]), at_once)
                for pod in pods
            ),
            *(
                self.client.delete(NODES.path(name=node["metadata"]["name"]))
                for node in population.nodes
            ),
        )
