from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from types import MappingProxyType

import pytest
from support import kube_objects
from support.clock import ManualClock
from support.kube_objects import Raw

from scheduler.execution.kubernetes.budgets import (
    Budget,
    Budgets,
    Shield,
    budget_of,
    critical,
    shielded,
)
from scheduler.execution.kubernetes.cluster import Cluster
from scheduler.execution.kubernetes.pods import Pod, pod_of
from scheduler.model.quantity import AttemptId, JobId, UtcSeconds

APP = {"app": "train"}


def raw_budget(allowed: object, *, name: str = "b", **fields: object) -> Raw:
    return {
        "metadata": {"namespace": "team", "name": name, "uid": f"uid-{name}", "generation": 2},
        "spec": {"selector": {"matchLabels": APP}},
        "status": {"disruptionsAllowed": allowed, "observedGeneration": 2},
        **fields,
    }


def budget(allowed: object, **fields: object) -> Budget:
    found = budget_of(raw_budget(allowed, **fields))  # type: ignore[arg-type] # the name among them
    assert found is not None
    return found


def bound(
    name: str,
    job: str,
    *,
    priority: int = 0,
    born: int = 0,
    attempt: str = "",
    more: Mapping[str, str] = MappingProxyType({}),
    **fields: object,
) -> Pod:
    """A pod that was bound for a job of ours."""
    marks = {
        "haversack.dev/job": job,
        "haversack.dev/attempt": attempt or f"a-{job}",
        "haversack.dev/marked": f"uid-{name}",
    }
    made = kube_objects.pod(
        name,
        labels={**APP, **more},
        annotations=marks,
        node="n",
        priority=priority,
        **fields,  # type: ignore[arg-type] # any field of the spec
    )
    made["metadata"]["creationTimestamp"] = f"2026-11-01T10:00:{born:02d}Z"
    return pod_of(made)


def gang(job: str, size: int, **fields: object) -> list[Pod]:
    return [bound(f"{job}-{at}", job, **fields) for at in range(size)]  # type: ignore[arg-type] # as above


@pytest.mark.parametrize(("allowed", "kept"), [(0, True), (1, True), (2, False), (3, False)])
def test_a_gang_may_go_only_if_all_of_its_pods_may(allowed: int, kept: bool) -> None:  # noqa: FBT001 - a row of the table
    why = shielded(gang("llama", 2), [budget(allowed)])
    assert (JobId("llama") in why) is kept
    assert not kept or f"team/b allows {allowed} of its pods" in why[JobId("llama")]


def test_gangs_share_what_a_budget_allows_and_the_lowest_may_go_first() -> None:
    pods = [*gang("high", 1, priority=9), *gang("low", 2), *gang("young", 1, born=5)]
    assert shielded(pods, [budget(1)]).keys() == {"high", "low"}
    assert shielded(pods, [budget(3)]).keys() == {"high"}
    assert shielded(pods, [budget(4)]) == {}


def test_whom_one_budget_keeps_leaves_the_room_of_another_to_others() -> None:
    """The youngest would go first, were it not for the budget of its tier."""
    tiered = bound("young", "young", born=9, more={"tier": "one"})
    strict = budget(0, name="strict", spec={"selector": {"matchLabels": {"tier": "one"}}})
    assert shielded([tiered, *gang("old", 1)], [budget(1), strict]).keys() == {"young"}
    assert shielded([tiered, *gang("old", 1)], [budget(1)]).keys() == {"old"}
    stranger = pod_of(kube_objects.pod(labels=APP, node="n"))
    assert shielded([stranger], [budget(0)]) == {}


def test_what_counts_as_gone_already_takes_nothing() -> None:
    gone = budget(0, status={"observedGeneration": 2, "disruptedPods": {"llama-0": "2026-11-01"}})
    assert shielded(gang("llama", 1), [gone]) == {}
    leaving = bound("llama-0", "llama", metadata={"deletionTimestamp": "2026-11-01T10:00:00Z"})
    assert shielded([leaving], [budget(0)]) == {}
    ended = bound("llama-0", "llama", status={"phase": "Succeeded"})
    assert shielded([ended], [budget(0)]) == {}
    other = budget(0, metadata={"namespace": "elsewhere", "name": "b", "uid": "u"})
    assert shielded(gang("llama", 1), [other]) == {}


@pytest.mark.parametrize(
    "raw",
    [
        raw_budget(5, status={"disruptionsAllowed": 5, "observedGeneration": 1}),
        raw_budget(5, status={"disruptionsAllowed": 5}),
        raw_budget(None),
        raw_budget("5"),
        raw_budget(-1),
        raw_budget(5, status=None),
    ],
    ids=["older", "never counted", "null", "text", "negative", "no status"],
)
def test_what_is_not_known_allows_nothing(raw: Raw) -> None:
    found = budget_of(raw)
    assert found is not None
    assert found.allowed == 0


def test_selectors() -> None:
    assert budget_of(raw_budget(1, spec={})) is None
    assert budget_of({}) is None
    pod = bound("p", "j")
    assert budget(1, spec={"selector": {}}).covers(pod)
    wrong = {"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["train"]}]}
    assert not budget(1, spec={"selector": wrong}).covers(pod)


def test_the_systems_own_pods_are_never_victims() -> None:
    assert critical(pod_of(kube_objects.pod(namespace="kube-system")))
    assert critical(pod_of(kube_objects.pod(priority=2_000_000_000)))
    assert not critical(pod_of(kube_objects.pod(priority=1_999_999_999)))


class Told:
    """A `ShieldStore` that notes whom it is told of."""

    def __init__(self) -> None:
        self.calls: list[frozenset[str]] = []

    async def shield(self, job_ids: Collection[JobId], now: UtcSeconds) -> None:
        del now
        self.calls.append(frozenset(job_ids))


def test_the_store_is_told_at_first_and_then_what_changes() -> None:
    cluster, budgets, store = Cluster(told=lambda: None), Budgets(), Told()
    shield = Shield(cluster, budgets, store, ManualClock())
    for pod in gang("llama", 2):
        cluster.pod_seen(pod)
    cluster.expect(AttemptId("a-llama"), [f"team/llama-{at}/uid-llama-{at}" for at in range(2)])

    async def story() -> None:
        await shield.look()
        await shield.look()
        budgets.changed(budget(1))
        await shield.look()
        budgets.replaced({budget(2).key: budget(2)})
        await shield.look()
        budgets.changed(budget(0))
        budgets.deleted(budget(0).key)
        await shield.look()

    asyncio.run(story())
    assert store.calls == [frozenset(), {"llama"}, frozenset()]


@pytest.mark.parametrize(
    ("attempt", "job", "told"),
    [
        ("a-llama", "llama", ()),
        ("a-llama", "mine", ()),
        ("a-mine", "llama", ()),
        ("a-other", "llama", ()),
        ("a-mine", "mine", ("mine",)),
    ],
)
def test_nobody_shields_another_gang_by_a_pod_and_a_budget_of_its_own(
    attempt: str, job: str, told: tuple[str, ...]
) -> None:
    """`mine` is a member of a gang that the store holds, and its tenant may write any marks."""
    cluster, budgets, store = Cluster(told=lambda: None), Budgets(), Told()
    shield = Shield(cluster, budgets, store, ManualClock())
    budgets.changed(budget(0))
    members = {"llama": "elsewhere/llama-0/uid-llama-0", "mine": "team/mine-0/uid-mine-0"}
    for name, member in members.items():
        cluster.expect(AttemptId(f"a-{name}"), [member], job_id=JobId(name))
    cluster.pod_seen(bound("mine-0", job, attempt=attempt))
    asyncio.run(shield.look())
    assert store.calls == [frozenset(told)]
