from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from support import kube_objects
from support.clock import ManualClock
from support.kubernetes.fake_server import FakeApiServer

from scheduler.execution.kubernetes.avoiding import Avoided
from scheduler.execution.kubernetes.cluster import Cluster
from scheduler.execution.kubernetes.gathering import ClusterGatherer
from scheduler.execution.kubernetes.lookup import Lookup
from scheduler.execution.kubernetes.pods import Pod, pod_of
from scheduler.execution.kubernetes.server import ApiServer

GANG, SIZE = "haversack.dev/gang", "haversack.dev/gang-size"


def played(story: Callable[[Cluster, ClusterGatherer], Awaitable[None]]) -> None:
    async def play() -> None:
        async with FakeApiServer() as fake, ApiServer(fake.access) as server:
            cluster = Cluster(told=lambda: None)
            gatherer = ClusterGatherer(cluster, Lookup(server), Avoided(ManualClock()))
            await story(cluster, gatherer)

    asyncio.run(play())


def member(place: int, **fields: object) -> Pod:
    made = kube_objects.pod(
        f"g{place}",
        labels={GANG: "g", "haversack.dev/queue": "fast"},
        annotations={SIZE: "2"},
        **fields,  # type: ignore[arg-type] # any field of the spec
    )
    return pod_of(made)


def test_a_whole_gang_becomes_one_of_the_store() -> None:
    async def story(cluster: Cluster, gatherer: ClusterGatherer) -> None:
        for place in (1, 0):
            cluster.pod_seen(member(place))
        found = await gatherer.gather(cluster.waiting(), frozenset())
        (gang,) = found.gangs
        assert gang.members == ("team/g0/uid-g0", "team/g1/uid-g1")
        assert (gang.name, gang.tenant, gang.queue) == ("g", "team", "fast")
        assert gang.shape.tasks == 2
        assert found.waiting == ()

    played(story)


def test_who_evicts_nobody_and_who_is_never_a_victim() -> None:
    async def story(cluster: Cluster, gatherer: ClusterGatherer) -> None:
        urgent = {"priority": 7, "priorityClassName": "urgent"}
        for place in (0, 1):
            cluster.pod_seen(member(place, preemptionPolicy="Never", **urgent))
        system = kube_objects.pod("dns", namespace="kube-system", priority=2_000_000_000)
        cluster.pod_seen(pod_of(system))
        found = (await gatherer.gather(cluster.waiting(), frozenset())).gangs
        gangs = {gang.name: gang for gang in found}
        assert (gangs["g"].evicts, gangs["g"].preemptible) == (False, True)
        assert (gangs["g"].priority, gangs["g"].priority_class) == (7, "urgent")
        assert (gangs["dns"].evicts, gangs["dns"].preemptible) == (True, False)

    played(story)


def test_members_that_are_placed_count() -> None:
    async def story(cluster: Cluster, gatherer: ClusterGatherer) -> None:
        cluster.pod_seen(member(0, node="n"))
        cluster.pod_seen(member(1))
        (gang,) = (await gatherer.gather(cluster.waiting(), frozenset())).gangs
        assert gang.members == ("team/g1/uid-g1",)

    played(story)


def test_a_need_that_we_cannot_judge_keeps_the_whole_gang_waiting_with_the_reason() -> None:
    async def story(cluster: Cluster, gatherer: ClusterGatherer) -> None:
        volume = {"name": "data", "persistentVolumeClaim": {"claimName": "nowhere"}}
        cluster.pod_seen(member(0))
        cluster.pod_seen(member(1, volumes=[volume]))
        found = await gatherer.gather(cluster.waiting(), frozenset())
        assert found.gangs == ()
        assert {pod.ref.name for pod, _ in found.waiting} == {"g0", "g1"}
        assert all("nowhere" in why for _, why in found.waiting)

    played(story)


GATED: dict[str, object] = {
    "schedulerName": "default-scheduler",
    "schedulingGates": [{"name": "haversack.dev/placement"}],
}
SPREAD = [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}]


def test_gated_pods_are_gangs_of_ours_whatever_else_they_need() -> None:
    async def story(cluster: Cluster, gatherer: ClusterGatherer) -> None:
        for place in (0, 1):
            cluster.pod_seen(member(place, topologySpreadConstraints=SPREAD, **GATED))
        found = await gatherer.gather(cluster.waiting(), frozenset())
        assert [gang.members for gang in found.gangs] == [("team/g0/uid-g0", "team/g1/uid-g1")]

    played(story)


def test_a_gang_takes_one_path_or_waits() -> None:
    async def story(cluster: Cluster, gatherer: ClusterGatherer) -> None:
        cluster.pod_seen(member(0, **GATED))
        cluster.pod_seen(member(1))
        found = await gatherer.gather(cluster.waiting(), frozenset())
        assert found.gangs == ()
        assert {pod.ref.name for pod, _ in found.waiting} == {"g0", "g1"}
        assert all("all of a gang must take the same path" in why for _, why in found.waiting)

    played(story)
