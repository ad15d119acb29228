"""Gangs whose size, or whose pods, change while they wait or run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from support import kube_objects
from support.kube_objects import Raw, api_object, owner

from scheduler.execution.kubernetes.gangs import Gangs, enough_of, gangs_of
from scheduler.execution.kubernetes.owners import Owner, OwnerKey, owner_of
from scheduler.execution.kubernetes.pods import Pod, pod_of

INDEX = "batch.kubernetes.io/job-completion-index"


def indexed(index: int, **fields: object) -> Pod:
    """A pod of the Indexed Job `llama`."""
    made = kube_objects.pod(
        f"llama-{index}-x",
        owner=owner("Job", "llama"),
        labels={INDEX: str(index)},
        **fields,  # type: ignore[arg-type] # any field of the spec
    )
    return pod_of(made)


def told(*objects: Raw) -> Mapping[OwnerKey, Owner]:
    found = [owner_of(each) for each in objects]
    return {each.key: each for each in found if each}


def job(size: int) -> Mapping[OwnerKey, Owner]:
    spec = {"completionMode": "Indexed", "completions": size, "parallelism": size}
    return told(api_object("batch/v1", "Job", "llama", spec))


def names(pods: Sequence[Pod]) -> list[str]:
    return [pod.ref.name for pod in pods]


def reason(found: Gangs) -> str:
    assert not found.complete
    (waiting,) = found.waiting
    return waiting.reason


def test_a_gang_that_grew_before_it_had_a_place_is_formed_anew() -> None:
    pods = [indexed(at) for at in range(4)]
    taken = {str(member.ref) for member in pods[:2]}
    found = gangs_of(pods, job(4), taken=taken)
    assert reason(found) == "its gang is formed anew: 4 pods must start together now"
    assert names(found.outgrown) == ["llama-0-x", "llama-1-x"]
    (anew,) = gangs_of(pods, job(4)).complete
    assert len(anew.members) == 4


def test_objects_that_have_enough_pods_are_told_as_what_they_say_must_not_be_old() -> None:
    assert enough_of([indexed(at) for at in range(2)], job(3)) == frozenset()
    assert enough_of([indexed(at) for at in range(3)], job(3)) == set(job(3))


def test_an_object_that_starts_in_parts_has_enough_with_its_smallest() -> None:
    replicated = [
        {"name": "driver", "template": {"spec": {}}},
        {"name": "workers", "replicas": 2, "template": {"spec": {"parallelism": 2}}},
    ]
    spec = {"replicatedJobs": replicated, "startupPolicy": {"startupPolicyOrder": "InOrder"}}
    in_order = told(api_object("jobset.x-k8s.io/v1alpha2", "JobSet", "llama", spec))
    marks = {
        "jobset.sigs.k8s.io/jobset-name": "llama",
        "jobset.sigs.k8s.io/replicatedjob-name": "driver",
    }
    assert enough_of([pod_of(kube_objects.pod(labels=marks))], in_order) == set(in_order)


def test_pods_that_succeeded_keep_their_place_where_one_object_made_them_all() -> None:
    """Else what replaces the one that failed would wait for the others for ever."""
    done = [indexed(at, node="n", status={"phase": "Succeeded"}) for at in range(2)]
    failed = indexed(2, node="n", status={"phase": "Failed"}, metadata={"uid": "first"})
    (gang,) = gangs_of([*done, failed, indexed(2)], job(3)).complete
    assert names(gang.members) == ["llama-2-x"]
    assert gang.placed == 2


def test_pods_that_succeeded_under_a_name_that_anybody_may_use_again_do_not() -> None:
    marks = {"labels": {"haversack.dev/gang": "g"}, "annotations": {"haversack.dev/gang-size": "3"}}
    before = [
        kube_objects.pod(f"g-{at}", node="n", status={"phase": "Succeeded"}, **marks)  # type: ignore[arg-type] # labels and annotations
        for at in range(2)
    ]
    again = kube_objects.pod("g-2", **marks)  # type: ignore[arg-type] # labels and annotations
    found = gangs_of(map(pod_of, [*before, again]), {})
    assert reason(found) == "waiting for 1 of 3 pods"
