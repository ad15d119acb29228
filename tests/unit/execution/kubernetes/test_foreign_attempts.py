"""Whose pods are stopped for want of an attempt, and with what grace: never those of others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import pytest
from support.clock import ManualClock
from support.fake_execution_store import FakeExecutionStore
from support.kubernetes import objects
from support.kubernetes.fake_server import FakeApiServer
from support.kubernetes.resources import NODES, PODS

from scheduler.execution.apply import Applier
from scheduler.execution.kubernetes import labels
from scheduler.execution.kubernetes.binder import Binder
from scheduler.execution.kubernetes.cluster import Cluster
from scheduler.execution.kubernetes.evict import Evictor
from scheduler.execution.kubernetes.executor import KubernetesExecutor
from scheduler.execution.kubernetes.launching import Launching
from scheduler.execution.kubernetes.nodes import node_of
from scheduler.execution.kubernetes.pinning import Pinner
from scheduler.execution.kubernetes.pods import pod_of
from scheduler.execution.kubernetes.server import ApiServer
from scheduler.execution.reconcile import Reconciler
from scheduler.execution.watch import Watcher
from scheduler.model.execution import Outcome, StopOrder
from scheduler.model.lifecycle import EndCause
from scheduler.model.quantity import AttemptId

A1, A2, A3 = (AttemptId(f"a{number}") for number in (1, 2, 3))
OWN = "haversack-jobs"


async def _no_sleep(_: float) -> None:
    await asyncio.sleep(0)


class Site:
    """A cluster with one node of four GPUs, and a daemon whose store holds nothing live.

    Attributes:
        launched: what the store has launched at any time, with its members.
        asked: of which attempts the store was asked that, in order.
    """

    def __init__(self, fake: FakeApiServer, server: ApiServer) -> None:
        self.fake, self.server = fake, server
        self.launched: dict[AttemptId, frozenset[str]] = {}
        self.asked: list[Sequence[AttemptId]] = []
        clock = ManualClock()
        self.cluster = Cluster(told=lambda: None, job_namespace=OWN)
        evictor = Evictor(server, clock)
        binder = Binder(server, evictor, fence=None, sleep=_no_sleep)
        self.executor = executor = KubernetesExecutor(
            self.cluster,
            binder,
            Pinner(server, binder, evictor, told=lambda *_: None),
            evictor,
            Launching(server, self.cluster, evictor, namespace=OWN, image="", leads=binder.leads),
            clock,
            synced=lambda: True,
            launched=self._launched,
        )
        store = FakeExecutionStore()
        watcher = Watcher(store, executor, clock, on_freed=lambda: None)
        applier = Applier(store, executor, watcher, clock, in_flight_max=2)
        self.reconciler = Reconciler(store, executor, watcher, applier, clock, every_s=30)
        for node in fake.objects(NODES):
            self.cluster.node_seen(node_of(node))

    async def _launched(self, attempt_ids: Sequence[AttemptId]) -> dict[AttemptId, frozenset[str]]:
        self.asked.append(tuple(attempt_ids))
        return {each: self.launched[each] for each in attempt_ids if each in self.launched}

    async def run(
        self, name: str, attempt: AttemptId, *, namespace: str = "default", **made: Any
    ) -> str:
        """A pod that runs and is marked for an attempt; its key."""
        named = {labels.ATTEMPT: attempt} if namespace == OWN else {}
        pod = objects.pod(name, namespace=namespace, gpus=1, labels=named, **made)
        uid = self.fake.create(pod)["metadata"]["uid"]
        path = f"/api/v1/namespaces/{namespace}/pods/{name}"
        marks = {labels.MARKED: uid, labels.ATTEMPT: attempt, labels.TASKS: "1"}
        await self.server.post(f"{path}/binding", objects.binding(name, "box"))
        await self.server.patch(path, {"metadata": {"annotations": marks}})
        await self.server.patch(f"{path}/status", {"status": {"phase": "Running"}})
        self.show()
        return f"{namespace}/{name}/{uid}"

    def show(self) -> None:
        for each in self.fake.objects(PODS):
            self.cluster.pod_seen(pod_of(each))

    async def passes(self, count: int = 3) -> None:
        for _ in range(count):
            await self.reconciler.make_pass()
            self.show()

    def deleted(self) -> list[str]:
        pods = (each["metadata"] for each in self.fake.objects(PODS))
        return [each["name"] for each in pods if "deletionTimestamp" in each]

    def used_by_others(self) -> int:
        (node,) = self.cluster.take_node_changes().seen
        return sum(gpu.external for gpu in node.gpus)


def play(story: Callable[[Site], Awaitable[None]]) -> None:
    async def acting() -> None:
        async with AsyncExitStack() as stack:
            fake = await stack.enter_async_context(FakeApiServer())
            fake.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": OWN}})
            fake.create(objects.node("box", gpus=4))
            server = await stack.enter_async_context(ApiServer(fake.access, sleep=_no_sleep))
            await story(Site(fake, server))

    asyncio.run(acting())


def test_what_an_earlier_store_has_bound_runs_on_as_usage_by_others() -> None:
    async def story(site: Site) -> None:
        await site.run("p1", A1)
        await site.run("p2", A2)
        await site.run("made", A3, namespace=OWN)
        await site.passes()
        assert site.deleted() == []
        assert site.reconciler.trouble == ""
        assert site.used_by_others() == 3
        assert [set(each) for each in site.asked] == [{A1, A2, A3}] * 3  # one look for all

    play(story)


@pytest.mark.parametrize("namespace", ["default", OWN])
def test_an_attempt_that_has_ended_here_and_still_runs_is_killed(namespace: str) -> None:
    async def story(site: Site) -> None:
        key = await site.run("p", A1, namespace=namespace)
        site.launched[A1] = frozenset({"" if namespace == OWN else key})
        await site.passes(1)
        assert site.deleted() == []
        await site.passes(1)
        assert site.deleted() == ["p"]

    play(story)


def test_marks_with_the_ids_of_ended_attempts_make_no_strays() -> None:
    async def story(site: Site) -> None:
        for number, attempt in enumerate((A1, A2, A3)):
            await site.run(f"forged-{number}", attempt)
        site.launched = {A1: frozenset({"default/p/u1"}), A2: frozenset({""})}
        await site.passes()
        assert site.deleted() == []
        assert site.reconciler.trouble == ""

    play(story)


def test_no_store_is_asked_for_what_can_be_no_id() -> None:
    async def story(site: Site) -> None:
        await site.run("p", AttemptId("a\x001"))
        await site.passes()
        assert site.asked == []

    play(story)


def test_pods_made_for_an_earlier_store_are_let_go_once_they_are_over() -> None:
    async def story(site: Site) -> None:
        await site.run("made", A1, namespace=OWN, finalizers=[labels.EXIT_STATUS])
        await site.passes()
        (pod,) = site.fake.objects(PODS)
        assert pod["metadata"]["finalizers"] == [labels.EXIT_STATUS]
        path = f"/api/v1/namespaces/{OWN}/pods/made/status"
        await site.server.patch(path, {"status": {"phase": "Succeeded"}})
        site.show()
        await site.passes(1)
        (pod,) = site.fake.objects(PODS)
        assert not pod["metadata"].get("finalizers")

    play(story)


def test_a_pod_made_for_an_earlier_store_and_never_bound_is_let_go_once_it_is_deleted() -> None:
    async def story(site: Site) -> None:
        named = {labels.ATTEMPT: A1}
        made = objects.pod("p", namespace=OWN, labels=named, finalizers=[labels.EXIT_STATUS])
        site.fake.create(made)
        site.show()
        await site.passes()
        assert site.deleted() == []
        await site.server.delete(f"/api/v1/namespaces/{OWN}/pods/p")
        site.show()
        await site.passes(1)
        assert site.fake.objects(PODS) == []

    play(story)


@pytest.mark.parametrize("cause", [EndCause.PREEMPTED, EndCause.CANCELLED, EndCause.LOST])
@pytest.mark.parametrize(("own_s", "granted_s"), [(300, 300), (0, 1)])
def test_a_pod_is_stopped_with_its_own_grace_time(
    cause: EndCause, own_s: int, granted_s: int
) -> None:
    async def story(site: Site) -> None:
        await site.run("p", A1, terminationGracePeriodSeconds=own_s)
        told = await site.executor.stop(StopOrder(A1, 1, cause, 10.0))
        assert told.outcome is Outcome.DONE
        (pod,) = site.fake.objects(PODS)
        assert pod["metadata"]["deletionGracePeriodSeconds"] == granted_s

    play(story)
