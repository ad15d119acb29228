from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from support import kube_objects

from scheduler.execution.kubernetes.cluster import Cluster, Members, NodeChanges, NodeSink, PodSink
from scheduler.execution.kubernetes.marks import attempt_of
from scheduler.execution.kubernetes.nodes import node_of
from scheduler.execution.kubernetes.pods import Phase, Pod, pod_of
from scheduler.model.node import Node
from scheduler.model.quantity import AttemptId

A1, A2 = AttemptId("a1"), AttemptId("a2")
GPU = "nvidia.com/gpu"


@dataclass
class World:
    """A picture, and how often it told that there is news."""

    told: int = 0
    cluster: Cluster = field(init=False)

    def __post_init__(self) -> None:
        self.cluster = Cluster(told=self._count)

    def _count(self) -> None:
        self.told += 1

    def node(self, name: str = "n", uid: str = "") -> None:
        offer = {"cpu": "8", "memory": "64Gi", "pods": "110", GPU: "4"}
        seen = node_of(kube_objects.node(name, uid=uid, allocatable=offer))
        self.cluster.node_seen(seen)

    def taken(self) -> NodeChanges:
        return self.cluster.take_node_changes()

    def only_node(self) -> Node:
        (node,) = self.taken().seen
        return node

    def free_gpus(self) -> int:
        return sum(not gpu.external for gpu in self.only_node().gpus)


@pytest.fixture
def world() -> World:
    return World()


def pod(
    name: str = "p",
    *,
    uid: str = "",
    node: str = "",
    attempt: str = "",
    scheduler: str = "haversack",
    marked: str | None = None,
) -> Pod:
    uid = uid or f"uid-{name}"
    marks = {"haversack.dev/attempt": attempt, "haversack.dev/marked": marked or uid}
    raw = kube_objects.pod(
        name,
        uid=uid,
        node=node,
        requests={"cpu": "1", GPU: "1"},
        annotations=marks if attempt else {},
        schedulerName=scheduler,
    )
    return pod_of(raw)


def key(name: str) -> str:
    return f"team/{name}/uid-{name}"


def test_marks_count_only_on_the_pod_that_they_were_written_on() -> None:
    assert attempt_of(pod(node="n", attempt="a1")) == A1
    assert attempt_of(pod(attempt="a1")) is None
    assert attempt_of(pod(node="n", attempt="a1", marked="uid-of-the-original")) is None
    assert attempt_of(pod(node="n")) is None


def test_pods_of_others_take_their_room_and_give_it_back(world: World) -> None:
    world.node()
    assert world.free_gpus() == 4
    world.cluster.pod_seen(pod(node="n", scheduler="another"))
    node = world.only_node()
    assert sum(gpu.external for gpu in node.gpus) == 1
    assert node.capacity.cpu_milli == 7000
    world.cluster.pod_seen(replace(pod(node="n", scheduler="another"), phase=Phase.SUCCEEDED))
    assert world.free_gpus() == 4


def test_pods_of_an_attempt_that_the_store_holds_are_no_use_by_others(world: World) -> None:
    world.node()
    world.cluster.expect(A1, [key("p")])
    world.taken()
    world.cluster.pod_seen(pod(node="n", attempt="a1"))
    assert world.taken() == NodeChanges((), ())


def test_pods_bound_by_us_for_an_attempt_that_the_store_does_not_know_take_room(
    world: World,
) -> None:
    world.node()
    world.cluster.pod_seen(pod(node="n", attempt="a1"))
    assert world.free_gpus() == 3
    assert world.cluster.attempts(held=False) == (A1,)
    world.cluster.expect(A1)
    assert world.cluster.attempts(held=False) == ()
    assert world.cluster.attempts(held=True) == (A1,)
    assert world.free_gpus() == 4


def test_a_stranger_with_the_marks_of_an_attempt_is_not_one_of_it(world: World) -> None:
    world.node()
    world.cluster.expect(A1, [key("p")])
    world.cluster.pod_seen(pod("forged", node="n", attempt="a1"))
    assert world.cluster.members(A1).bound == ()
    assert world.free_gpus() == 3


def test_members_are_bound_or_not_yet_or_gone(world: World) -> None:
    world.cluster.expect(A1, map(key, "abcd"))
    world.cluster.pod_seen(pod("a", node="n", attempt="a1"))
    world.cluster.pod_seen(pod("b"))
    world.cluster.pod_seen(replace(pod("c"), deleting=True))
    found = world.cluster.members(A1)
    assert [each.ref.name for each in found.bound] == ["a"]
    assert [each.ref.name for each in found.unbound] == ["b"]
    assert found.total == 4
    assert world.cluster.members(A2).total == 0


def test_what_is_released_is_looked_at_anew_where_it_was(world: World) -> None:
    world.node()
    world.cluster.expect(A1, [key("p")])
    world.cluster.pod_seen(pod(node="n", attempt="a1"))
    world.cluster.pod_gone(key("p"))
    world.taken()
    before = world.told
    world.cluster.release(A1)
    assert world.told == before + 1
    assert [node.name for node in world.taken().seen] == ["n"]


def test_a_node_made_anew_under_its_name_outlives_the_old_ones_end(world: World) -> None:
    world.node(uid="old")
    world.node(uid="new")
    world.cluster.node_gone("n", "old")
    assert [node.id for node in world.taken().seen] == ["new"]
    NodeSink(world.cluster).deleted("/n/new")
    assert world.taken() == NodeChanges((), ("n",))


def test_what_could_not_be_stored_is_told_again(world: World) -> None:
    world.node("here")
    world.cluster.node_gone("here", "other")
    changes = world.taken()
    assert world.taken() == NodeChanges((), ())
    world.cluster.give_back(NodeChanges(changes.seen, ("gone",)))
    again = world.taken()
    assert (again.seen, again.gone) == (changes.seen, ("gone",))


@pytest.mark.parametrize(
    "after",
    [
        None,
        replace(pod(), deleting=True),
        replace(pod(), phase=Phase.FAILED),
        pod(node="n"),
        pod(node="n", attempt="a2"),
    ],
    ids=["gone", "deleted", "ended", "bound by others", "bound for a forgotten attempt"],
)
def test_members_are_lost_when_they_can_no_longer_be_ours(world: World, after: Pod | None) -> None:
    world.cluster.pod_seen(pod())
    assert world.cluster.take_lost([key("p")]) == ()
    if after is None:
        PodSink(world.cluster).deleted(key("p"))
    else:
        PodSink(world.cluster).changed(after)
    assert not world.cluster.available(key("p"))
    assert world.cluster.take_lost([key("p")]) == (key("p"),)
    assert world.cluster.take_lost([key("p")]) == ()


def test_a_member_that_we_bind_is_not_lost(world: World) -> None:
    world.cluster.pod_seen(pod())
    world.cluster.expect(A1, [key("p")])
    world.cluster.pod_seen(pod(node="n", attempt="a1"))
    assert world.cluster.take_lost([key("p")]) == ()
    assert world.cluster.available(key("p"))
    assert world.cluster.waiting() == ()


def test_a_pod_made_anew_under_its_name_is_another_one(world: World) -> None:
    world.cluster.pod_seen(pod())
    world.cluster.pod_seen(pod(uid="second"))
    world.cluster.pod_gone(key("p"))
    assert [each.ref.uid for each in world.cluster.waiting()] == ["second"]


def test_watchers_hear_of_their_attempt_until_it_is_released(world: World) -> None:
    heard: list[AttemptId] = []
    world.cluster.expect(A1, [key("p")])
    world.cluster.watch(A1, heard.append)
    world.cluster.pod_seen(pod(node="n", attempt="a1"))
    world.cluster.pod_seen(pod("other", node="n", attempt="a2"))
    world.cluster.pod_gone(key("p"))
    assert heard == [A1, A1]
    world.cluster.release(A1)
    world.cluster.pod_seen(pod(node="n", attempt="a1"))
    assert heard == [A1, A1]


def test_watchers_hear_of_a_member_that_goes_before_its_binding_was_seen(world: World) -> None:
    heard: list[AttemptId] = []
    world.cluster.pod_seen(pod())
    world.cluster.expect(A1, [key("p")])
    world.cluster.watch(A1, heard.append)
    world.cluster.pod_gone(key("p"))
    assert heard == [A1]


def test_news_of_our_pods_is_taken_once_and_can_be_put_back(world: World) -> None:
    world.cluster.pod_seen(pod("theirs", scheduler="another"))
    assert not world.cluster.take_pods_changed()
    world.cluster.pod_seen(pod())
    assert world.cluster.take_pods_changed()
    assert not world.cluster.take_pods_changed()
    world.cluster.pods_not_taken()
    assert world.cluster.take_pods_changed()


def test_nothing_is_kept_of_what_is_gone(world: World) -> None:
    for number in range(50):
        name = f"p{number}"
        world.node(f"n{number}")
        attempt = AttemptId(f"a{number}")
        world.cluster.expect(attempt, [key(name)])
        world.cluster.pod_seen(pod(name))
        world.cluster.pod_seen(pod(name, node=f"n{number}", attempt=attempt))
        world.cluster.pod_gone(key(name))
        world.cluster.release(attempt)
        world.cluster.node_gone(f"n{number}", f"uid-n{number}")
    world.taken()
    world.cluster.take_lost([])
    kept = [getattr(world.cluster, name) for name in Cluster.__slots__ if name.startswith("_")]
    assert not [each for each in kept if isinstance(each, dict | set) and each]


def pinned(*, gated: bool, gpus: str = "2") -> Pod:
    """A pod that is pinned to n for A1, before or after its release."""
    gate = [{"name": "haversack.dev/placement"}] if gated else []
    field = {"key": "metadata.name", "operator": "In", "values": ["n"]}
    required = {"nodeSelectorTerms": [{"matchFields": [field]}]}
    name = "requiredDuringSchedulingIgnoredDuringExecution"
    marks = {"haversack.dev/attempt": A1, "haversack.dev/marked": "uid-p"}
    return pod_of(
        kube_objects.pod(
            "p",
            schedulerName="default-scheduler",
            schedulingGates=gate,
            affinity={"nodeAffinity": {name: required}},
            annotations=marks,
            requests={GPU: gpus},
        )
    )


def test_a_released_pod_takes_the_room_it_is_pinned_to_unless_its_attempt_holds_it() -> None:
    cluster = Cluster(told=lambda: None)
    cluster.node_seen(node_of(kube_objects.node("n")))
    cluster.pod_seen(pinned(gated=True))
    assert _used(cluster) == 0
    cluster.pod_seen(pinned(gated=False))
    assert _used(cluster) == 2
    assert cluster.pinned() == ()
    cluster.expect(A1)
    assert _used(cluster) == 0
    assert [pod.ref.name for pod in cluster.pinned()] == ["p"]
    cluster.release(A1)
    assert _used(cluster) == 2
    assert cluster.pinned() == ()
    cluster.pod_gone(str(pinned(gated=False).ref))
    assert _used(cluster) == 0


def test_a_stranger_pinned_with_the_marks_of_an_attempt_is_not_one_of_it() -> None:
    cluster = Cluster(told=lambda: None)
    cluster.expect(A1, [key("another")])
    cluster.pod_seen(pinned(gated=False))
    assert cluster.pinned() == ()
    assert cluster.members(A1) == Members((), total=1)


def test_a_pod_labelled_as_made_for_the_attempt_of_others_is_not_one_of_it() -> None:
    cluster = Cluster(told=lambda: None, job_namespace="jobs")
    cluster.expect(A1, [key("p")])
    cluster.pod_seen(pod(node="n", attempt="a1"))
    labels = {"haversack.dev/attempt": A1}
    cluster.pod_seen(pod_of(kube_objects.pod("forged", namespace="jobs", labels=labels)))
    assert cluster.own(A1) == ()
    assert [each.ref.name for each in cluster.members(A1).bound] == ["p"]


def _used(cluster: Cluster) -> int:
    """GPUs of the node that others use, as it is told now."""
    (seen,) = cluster.take_node_changes().seen or (None,)
    assert seen is not None, "the node was not told to have changed"
    return sum(gpu.external for gpu in seen.gpus)


def test_a_pinned_pod_is_a_member_that_is_done_with_once_it_is_released() -> None:
    cluster = Cluster(told=lambda: None)
    cluster.pod_seen(pinned(gated=True))
    assert [pod.ref.name for pod in cluster.waiting()] == ["p"]
    found = cluster.members(A1)
    assert (len(found.bound), len(found.unbound)) == (0, 1)
    assert cluster.attempts(held=False) == (A1,)
    cluster.pod_seen(pinned(gated=False))
    found = cluster.members(A1)
    assert (len(found.bound), len(found.unbound)) == (1, 0)
    assert cluster.waiting() == ()
    key = str(pinned(gated=False).ref)
    assert not cluster.available(key)
    cluster.expect(A1, [key])
    assert cluster.available(key)
