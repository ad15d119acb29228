from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace

import pytest
from support import kube_objects
from support.clock import ManualClock

from scheduler.errors import FencedError, StorageError
from scheduler.execution.kubernetes.cluster import Cluster
from scheduler.execution.kubernetes.follower import Follower, Gathered
from scheduler.execution.kubernetes.nodes import node_of
from scheduler.execution.kubernetes.pods import Pod, pod_of
from scheduler.model.job import JobShape
from scheduler.model.node import Node
from scheduler.model.outside import OutsideGang, OutsideJob
from scheduler.model.quantity import (
    AttemptId,
    JobId,
    NodeId,
    QueueName,
    Resources,
    TenantId,
    UtcSeconds,
)


async def _no_sleep(_: float) -> None:
    await asyncio.sleep(0)


@dataclass
class KeptInMemory:
    """An outside store of dictionaries.

    Attributes:
        trouble: raised by the next calls, one each.
    """

    nodes: dict[NodeId, Node] = field(default_factory=dict)
    jobs: dict[str, OutsideJob] = field(default_factory=dict)
    withdrawn: list[str] = field(default_factory=list)
    trouble: list[Exception] = field(default_factory=list)

    async def node_ids(self) -> Mapping[str, NodeId]:
        return {node.name: node.id for node in self.nodes.values()}

    async def sync_nodes(
        self, changed: Sequence[Node], gone: Sequence[NodeId], now: UtcSeconds
    ) -> int:
        del now
        self._answer()
        for node_id in gone:
            self.nodes.pop(node_id, None)
        self.nodes |= {node.id: node for node in changed}
        return len(changed) + len(gone)

    async def adopt(self, gangs: Sequence[OutsideGang], now: UtcSeconds) -> Mapping[str, JobId]:
        del now
        self._answer()
        for gang in gangs:
            made = OutsideJob(JobId(f"j-{gang.key}"), gang.members, waiting=True)
            self.jobs.setdefault(gang.key, made)
        return {gang.key: self.jobs[gang.key].job_id for gang in gangs}

    async def withdraw(self, keys: Sequence[str], why: str, now: UtcSeconds) -> None:
        del why, now
        self._answer()
        self.withdrawn += keys
        for key in keys:
            del self.jobs[key]

    async def open_gangs(self) -> Mapping[str, OutsideJob]:
        self._answer()
        return dict(self.jobs)

    def _answer(self) -> None:
        if self.trouble:
            raise self.trouble.pop(0)


class Pairs:
    """Makes gangs of two pods whose names have the same first letter."""

    async def gather(self, fresh: Sequence[Pod], taken: frozenset[str]) -> Gathered:
        assert not taken & {str(pod.ref) for pod in fresh}
        groups: dict[str, list[Pod]] = {}
        for pod in fresh:
            groups.setdefault(pod.ref.name[0], []).append(pod)
        return Gathered(
            gangs=tuple(_gang(pods) for pods in groups.values() if len(pods) == 2),
            waiting=tuple(
                (pod, "waiting for 1 of 2 pods")
                for pods in groups.values()
                if len(pods) != 2
                for pod in pods
            ),
        )


def _gang(pods: Sequence[Pod]) -> OutsideGang:
    return OutsideGang(
        key="+".join(pod.ref.uid for pod in pods),
        name=pods[0].ref.name[0],
        tenant=TenantId("team"),
        queue=QueueName("default"),
        priority=0,
        shape=JobShape(2, Resources(1, 1000, 1)),
        members=tuple(str(pod.ref) for pod in pods),
        preemptible=True,
        submitted_at=UtcSeconds(1.0),
    )


class Stage:
    def __init__(self, store: KeptInMemory) -> None:
        self.store = store
        self.reports: list[tuple[str, str]] = []
        self.cluster = Cluster(told=self._news)
        self.follower = Follower(
            self.cluster,
            store,
            Pairs(),
            ManualClock(),
            report=lambda told: self.reports.extend((pod.ref.name, why) for pod, why in told),
            sleep=_no_sleep,
        )

    def _news(self) -> None:
        self.follower.wake()

    @contextmanager
    def running(self) -> Iterator[asyncio.Task[None]]:
        task = asyncio.create_task(self.follower.run())
        yield task
        task.cancel()

    async def until(self, so: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not so():  # noqa: ASYNC110 - what is waited for is a state, told by nobody
                await asyncio.sleep(0.001)

    def see(self, *names: str) -> None:
        for name in names:
            self.cluster.pod_seen(pod(name))


def pod(name: str, uid: str = "", node: str = "") -> Pod:
    return pod_of(kube_objects.pod(name, uid=uid, node=node))


def key(name: str) -> str:
    return f"team/{name}/uid-{name}"


def played(story: Callable[[Stage], Awaitable[None]], store: KeptInMemory | None = None) -> None:
    async def play() -> None:
        await story(Stage(store or KeptInMemory()))

    asyncio.run(play())


def machine(name: str, uid: str) -> Node:
    return Node(NodeId(uid), name, Resources(0, 1, 1))


def test_gangs_are_adopted_once_and_their_members_known() -> None:
    async def story(stage: Stage) -> None:
        stage.see("a0", "a1", "b0")
        await stage.follower.begin()
        assert {stage.follower.job_of(key(name)) for name in ("a0", "a1")} == {"j-uid-a0+uid-a1"}
        assert stage.reports == [("b0", "waiting for 1 of 2 pods")]
        assert stage.follower.pod_waits("team", "b0") == "waiting for 1 of 2 pods"
        assert stage.follower.pod_waits("team", "a0") == ""
        with stage.running():
            stage.see("b1")
            await stage.until(lambda: len(stage.store.jobs) == 2)

    played(story)


def test_what_left_while_nobody_looked_leaves_the_store() -> None:
    store = KeptInMemory(
        nodes={node.id: node for node in (machine("gone", "u1"), machine("anew", "u2"))}
    )

    async def story(stage: Stage) -> None:
        stage.cluster.node_seen(node_of(kube_objects.node("anew", uid="u3")))
        await stage.follower.begin()
        assert list(store.nodes) == ["u3"]

    played(story, store)


def test_a_node_made_anew_under_its_name_is_another_one() -> None:
    async def story(stage: Stage) -> None:
        stage.cluster.node_seen(node_of(kube_objects.node("n", uid="u1")))
        await stage.follower.begin()
        with stage.running():
            stage.cluster.node_seen(node_of(kube_objects.node("n", uid="u2")))
            await stage.until(lambda: list(stage.store.nodes) == ["u2"])
            stage.cluster.node_gone("n", "u2")
            await stage.until(lambda: not stage.store.nodes)

    played(story)


def test_a_waiting_gang_is_formed_anew_on_demand_and_a_placed_one_is_left() -> None:
    async def story(stage: Stage) -> None:
        stage.see("a0", "a1", "b0", "b1")
        await stage.follower.begin()
        placed = stage.store.jobs["uid-b0+uid-b1"]
        stage.store.jobs["uid-b0+uid-b1"] = replace(placed, waiting=False)
        with stage.running():
            stage.follower.reform(stage.cluster.waiting())
            await stage.until(lambda: stage.store.withdrawn == ["uid-a0+uid-a1"])
            await stage.until(lambda: len(stage.store.jobs) == 2)

    played(story)


ANEW = ["second", "uid-a1"]


@pytest.mark.parametrize("after", ["gone", "bound by others"])
def test_a_waiting_gang_that_lost_a_member_is_withdrawn_and_the_rest_told(after: str) -> None:
    async def story(stage: Stage) -> None:
        stage.see("a0", "a1")
        await stage.follower.begin()
        with stage.running():
            if after == "gone":
                stage.cluster.pod_gone(key("a0"))
            else:
                stage.cluster.pod_seen(pod("a0", node="n"))
            await stage.until(lambda: stage.store.withdrawn == ["uid-a0+uid-a1"])
            await stage.until(lambda: stage.reports == [("a1", "waiting for 1 of 2 pods")])
            stage.cluster.pod_seen(pod("a0", uid="second"))
            await stage.until(lambda: sorted("+".join(stage.store.jobs).split("+")) == ANEW)

    played(story)


def test_a_gang_that_lost_a_member_while_nobody_looked_is_withdrawn_at_the_start() -> None:
    jobs = {"k": OutsideJob(JobId("j"), (key("a0"), key("a1")), waiting=True)}

    async def story(stage: Stage) -> None:
        stage.see("a0")
        await stage.follower.begin()
        assert stage.store.withdrawn == ["k"]

    played(story, KeptInMemory(jobs=jobs))


def test_a_live_gang_is_left_to_its_end() -> None:
    jobs = {"k": OutsideJob(JobId("j"), (key("a0"),), waiting=False)}

    async def story(stage: Stage) -> None:
        await stage.follower.begin()
        assert stage.store.withdrawn == []
        assert stage.follower.job_of(key("a0")) == "j"
        del stage.store.jobs["k"]
        await stage.follower.begin()
        assert stage.follower.job_of(key("a0")) is None

    played(story, KeptInMemory(jobs=jobs))


@pytest.mark.parametrize("trouble", [StorageError("full"), ValueError("a bug")])
def test_a_trouble_is_told_and_what_was_to_do_is_done_later(trouble: Exception) -> None:
    async def story(stage: Stage) -> None:
        await stage.follower.begin()
        stage.store.trouble = [trouble]
        with stage.running() as task:
            stage.cluster.node_seen(node_of(kube_objects.node("n")))
            stage.see("a0", "a1")
            await stage.until(lambda: bool(stage.store.jobs) and not stage.follower.trouble)
            assert len(stage.store.nodes) == 1
            assert not task.done()

    played(story)


def test_who_is_fenced_stops() -> None:
    async def story(stage: Stage) -> None:
        await stage.follower.begin()
        stage.store.trouble = [FencedError("another leads")]
        with stage.running() as task:
            stage.see("a0", "a1")
            with pytest.raises(FencedError):
                await asyncio.wait_for(task, 10)

    played(story)


def test_news_may_come_from_any_thread() -> None:
    async def story(stage: Stage) -> None:
        attempt = AttemptId("a")
        stage.cluster.expect(attempt, [key("a0")])
        stage.cluster.node_seen(node_of(kube_objects.node("n", allocatable={"cpu": "8"})))
        bound = pod("a0", node="n")
        marks = (("haversack.dev/attempt", "a"), ("haversack.dev/marked", "uid-a0"))
        stage.cluster.pod_seen(replace(bound, annotations=marks))
        await stage.follower.begin()
        (before,) = stage.store.nodes.values()
        with stage.running(), suppress(TimeoutError):
            await asyncio.sleep(0.05)
            thread = threading.Thread(target=stage.cluster.release, args=(attempt,))
            thread.start()
            await stage.until(lambda: list(stage.store.nodes.values()) != [before])
            thread.join()
        (after,) = stage.store.nodes.values()
        assert after.capacity.cpu_milli == before.capacity.cpu_milli - 1000

    played(story)
