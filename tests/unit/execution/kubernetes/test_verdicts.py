from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from support import kube_objects
from support.clock import ManualClock

from scheduler.errors import FencedError
from scheduler.execution.kubernetes.avoiding import AVOID_S, Avoided
from scheduler.execution.kubernetes.cluster import Cluster
from scheduler.execution.kubernetes.pinning import Pinner
from scheduler.execution.kubernetes.pods import Pod, pod_of
from scheduler.execution.kubernetes.verdicts import Verdicts
from scheduler.model.quantity import AttemptId

REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
A1 = AttemptId("a1")
SET = kube_objects.owner("ReplicaSet", "set", api_version="apps/v1")
LIMIT_S = 30.0


@dataclass
class Taker:
    """Takes pods back as the server would: they are gone from the picture afterwards."""

    cluster: Cluster
    asked: list[tuple[str, ...]] = field(default_factory=list)
    changed: bool = False
    fenced: bool = False

    async def take_back(self, pods: Sequence[Pod], why: str, epoch: int) -> bool:
        assert why
        assert epoch == 7
        if self.fenced:
            raise FencedError("another leader")
        self.asked.append(tuple(pod.ref.name for pod in pods))
        if self.changed:
            return False
        for each in pods:
            self.cluster.pod_gone(str(each.ref))
        return True


class Stage:
    """A picture, and what is made of it."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.cluster = Cluster(told=lambda: None)
        self.taker = Taker(self.cluster)
        self.avoided = Avoided(self.clock)
        self.given_up: list[tuple[AttemptId, str]] = []
        self.cluster.expect(A1, ("team/p/uid-p", "team/q/uid-q"))
        self.reformed: list[str] = []
        self.verdicts = Verdicts(
            self.cluster,
            cast("Pinner", self.taker),
            self.avoided,
            self.clock,
            epoch=7,
            limit_s=LIMIT_S,
            given_up=lambda attempt_id, why: self.given_up.append((attempt_id, why)),
            reform=lambda pods: self.reformed.extend(pod.ref.name for pod in pods),
        )

    def show(self, name: str, *, why: str = "", tasks: int = 2, **fields: Any) -> Pod:
        """A pod that was pinned to n1 and released; `why` kube-scheduler refuses it."""
        said = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
        status = {"phase": "Pending", "conditions": [{**said, "message": why}] if why else []}
        pin = {"key": "metadata.name", "operator": "In", "values": ["n1"]}
        terms = {"nodeSelectorTerms": [{"matchFields": [pin]}]}
        marks = {"attempt": "a1", "marked": f"uid-{name}", "tasks": str(tasks)}
        shown = pod_of(
            kube_objects.pod(
                name,
                **{
                    "schedulerName": "default-scheduler",
                    "annotations": {f"haversack.dev/{key}": value for key, value in marks.items()},
                    "affinity": {"nodeAffinity": {REQUIRED: terms}},
                    "owner": SET,
                    "status": status,
                    **fields,
                },
            )
        )
        self.cluster.pod_seen(shown)
        return shown

    def look(self, after_s: float = 0.0) -> None:
        self.clock.advance(after_s)
        asyncio.run(self.verdicts.look())


def test_a_refused_member_has_its_gang_given_up_after_the_limit() -> None:
    stage = Stage()
    stage.show("p", why="no room")
    stage.show("q", node="n1")
    stage.look()
    stage.look(LIMIT_S - 1)
    assert stage.taker.asked == []
    stage.look(1)
    assert [set(asked) for asked in stage.taker.asked] == [{"p", "q"}]
    assert stage.given_up == [(A1, "kube-scheduler does not bind pod p to n1: no room")]
    assert stage.avoided.nodes([pod_of(kube_objects.pod("new", owner=SET))]) == ("n1",)
    stage.look(1)
    assert len(stage.taker.asked) == 1


def test_silence_is_no_refusal_and_a_binding_ends_the_matter() -> None:
    stage = Stage()
    stage.show("p")
    stage.show("q")
    stage.look()
    stage.look(10 * LIMIT_S)
    stage.show("p", why="no room")
    stage.look()
    stage.look(LIMIT_S - 1)
    stage.show("p", node="n1")
    stage.look(10 * LIMIT_S)
    assert stage.given_up == []


def test_a_gang_that_lost_a_member_before_all_were_bound_is_given_up() -> None:
    stage = Stage()
    stage.show("p")
    stage.look()
    stage.look(LIMIT_S)
    assert stage.given_up == [(A1, "some of its pods were gone before all were bound")]
    assert stage.taker.asked == [("p",)]


def test_pods_that_changed_are_looked_at_again_until_none_is_left() -> None:
    stage = Stage()
    stage.show("p", why="no room")
    stage.show("q", node="n1")
    stage.taker.changed = True
    stage.look()
    stage.look(LIMIT_S)
    stage.show("p", node="n1")  # kube-scheduler was quicker
    stage.taker.changed = False
    stage.look(1)
    assert [set(asked) for asked in stage.taker.asked] == [{"p", "q"}] * 2
    assert len(stage.given_up) == 1


@pytest.mark.parametrize(("tasks", "asked"), [(1, []), (2, [("p",)])])
def test_only_a_lone_pod_that_nobody_makes_again_is_left_alone(
    tasks: int, asked: list[tuple[str, ...]]
) -> None:
    stage = Stage()
    stage.show("p", why="no room", tasks=tasks, owner=None)
    stage.look()
    stage.look(LIMIT_S)
    assert stage.taker.asked == asked


def test_waiting_pods_are_formed_anew_once_a_node_is_open_again() -> None:
    stage = Stage()
    stage.avoided.remember(stage.show("p", why="no room"))
    stage.show("p", node="n1", tasks=1)
    stage.show("new", affinity={}, schedulingGates=[{"name": "haversack.dev/placement"}])
    stage.look()
    assert stage.reformed == []
    stage.look(AVOID_S)
    assert stage.reformed == ["new"]


@pytest.mark.parametrize("why", ["no room", ""])
def test_a_stranger_with_the_marks_of_a_gang_has_no_say_in_it(why: str) -> None:
    """Neither by being refused, nor by telling of more pods than the gang has."""
    stage = Stage()
    stage.show("forged", why=why, tasks=9, namespace="evil")
    stage.show("p", node="n1")
    stage.show("q")
    stage.look()
    stage.look(10 * LIMIT_S)
    assert (stage.given_up, stage.taker.asked) == ([], [])
    assert stage.avoided.nodes([pod_of(kube_objects.pod("new", owner=SET))]) == ()
    # Nor is it taken along when the gang itself is given up.
    stage.show("q", why="no room")
    stage.look()
    stage.look(LIMIT_S)
    assert [set(asked) for asked in stage.taker.asked] == [{"p", "q"}]


def test_pods_that_the_store_holds_no_room_for_are_not_judged() -> None:
    stage = Stage()
    stage.cluster.release(A1)
    stage.show("p", why="no room")
    stage.look()
    stage.look(LIMIT_S)
    assert (stage.given_up, stage.taker.asked) == ([], [])


def test_who_leads_no_more_says_so() -> None:
    stage = Stage()
    stage.show("p", why="no room")
    stage.taker.fenced = True
    stage.look()
    with pytest.raises(FencedError):
        stage.look(LIMIT_S)
