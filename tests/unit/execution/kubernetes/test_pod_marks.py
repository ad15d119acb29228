from __future__ import annotations

from typing import Any

import pytest
from support import kube_objects
from support.clock import ManualClock

from scheduler.execution.kubernetes.avoiding import AVOID_S, Avoided, off
from scheduler.execution.kubernetes.marks import attempt_of, is_ours, is_released, pin_of, seat_of
from scheduler.execution.kubernetes.pods import Pod, pod_of
from scheduler.model.site import ANYWHERE, Operator, Requirement, Site, Term

REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
GATE = [{"name": "haversack.dev/placement"}]
MARKS = {"haversack.dev/attempt": "a1", "haversack.dev/marked": "uid-p"}


def on(*nodes: str) -> dict[str, Any]:
    """Affinity of one term for each node, in which it is the only one."""
    terms = [
        {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}
        for node in nodes
    ]
    return {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": terms}}}


def pod(name: str = "p", *, scheduler: str = "default-scheduler", **fields: Any) -> Pod:
    return pod_of(kube_objects.pod(name, schedulerName=scheduler, **fields))


def test_a_pin_is_one_node_in_every_term_that_can_be_met() -> None:
    assert pin_of(pod(affinity=on("n1"))) == "n1"
    assert pin_of(pod(affinity=on("n1", "n1"))) == "n1"
    assert pin_of(pod(affinity=on("n1", "n2"))) == ""
    assert pin_of(pod()) == ""
    with_empty = on("n1")
    with_empty["nodeAffinity"][REQUIRED]["nodeSelectorTerms"].append({})
    assert pin_of(pod(affinity=with_empty)) == "n1"
    with_more = on("n1")
    label = {"matchExpressions": [{"key": "disk", "operator": "Exists"}]}
    with_more["nodeAffinity"][REQUIRED]["nodeSelectorTerms"].append(label)
    assert pin_of(pod(affinity=with_more)) == ""


@pytest.mark.parametrize(
    ("fields", "ours", "released", "seat"),
    [
        ({"scheduler": "haversack"}, True, False, ""),
        ({"scheduler": "haversack", "node": "n1"}, True, True, "n1"),
        ({}, False, True, ""),
        ({"schedulingGates": GATE}, True, False, ""),
        ({"schedulingGates": GATE, "affinity": on("n1"), "annotations": MARKS}, True, False, ""),
        ({"affinity": on("n1"), "annotations": MARKS}, True, True, "n1"),
        ({"affinity": on("n1")}, False, True, ""),
        ({"affinity": on("n1"), "annotations": MARKS, "node": "n1"}, True, True, "n1"),
        ({"schedulingGates": GATE, "scheduler": "somebody-else"}, False, False, ""),
    ],
    ids=["named", "bound", "strange", "gated", "pinned", "released", "pin", "both", "other"],
)
def test_what_is_ours_and_where_it_will_sit(
    fields: dict[str, Any], *, ours: bool, released: bool, seat: str
) -> None:
    found = pod(**fields)
    assert (is_ours(found), is_released(found), seat_of(found)) == (ours, released, seat)


def test_a_pod_wants_a_node_of_us_only_while_our_gate_holds_it() -> None:
    assert pod(schedulingGates=GATE).waiting
    assert not pod().waiting
    assert not pod(affinity=on("n1"), annotations=MARKS).waiting


def test_copied_marks_are_nobodys() -> None:
    assert attempt_of(pod(affinity=on("n1"), annotations=MARKS)) == "a1"
    assert attempt_of(pod("copy", affinity=on("n1"), annotations=MARKS)) is None
    assert attempt_of(pod(annotations=MARKS)) is None


def test_pods_of_the_same_maker_avoid_a_node_for_a_while() -> None:
    clock = ManualClock()
    avoided = Avoided(clock)
    by_set = kube_objects.owner("ReplicaSet", "set", api_version="apps/v1")
    refused = pod("p", affinity=on("n1"), annotations=MARKS, owner=by_set)
    again, other = pod("q", owner=by_set), pod("r")
    assert avoided.nodes([again]) == ()
    avoided.remember(refused)
    assert avoided.nodes([again, other]) == ("n1",)
    assert avoided.nodes([other]) == ()
    assert avoided.lapsed([again, other]) == ()
    clock.advance(AVOID_S)
    assert avoided.nodes([again]) == ()
    assert avoided.lapsed([again, other]) == (again,)
    assert avoided.lapsed([again, other]) == ()


def test_a_site_without_some_nodes_is_as_it_was_for_all_others() -> None:
    assert off(ANYWHERE, ()) is ANYWHERE
    anywhere_else = off(ANYWHERE, ("n1", "n2"))
    assert not anywhere_else.selects("n1", {})
    assert not anywhere_else.selects("n2", {})
    assert anywhere_else.selects("n3", {})
    fast = Requirement("disk", Operator.IN, ("fast",))
    picky = off(Site(terms=(Term(labels=(fast,)), Term())), ("n1",))
    assert not picky.selects("n1", {"disk": "fast"})
    assert picky.selects("n2", {"disk": "fast"})
    assert not picky.selects("n2", {})
