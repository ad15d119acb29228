from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from support.clusters import NOW, make_job, make_node, occupy, shape, snapshot_of, two_domains

from policies.priority_age import PriorityAge
from policies.registry import profile_named
from scheduler.allocation.verify import Kind, Severity, Violation, check_safety, verify
from scheduler.decide import decide
from scheduler.model.job import Topology
from scheduler.model.node import Health
from scheduler.model.plan import Eviction, Plan, Waiting
from scheduler.model.ports import Effort
from scheduler.model.quantity import AttemptId, GpuId, JobId, NodeId, UtcSeconds
from scheduler.model.snapshot import Snapshot

ORDER = PriorityAge()
PROFILE = profile_named("priority-age")
A = make_node("a", board=two_domains(), rack="r1")
B = make_node("b", model="A100", rack="r2")
C = make_node("c", pool="batch")
JOBS = [
    make_job("pair", shape(2, tasks=2, models=("H100",), topology=Topology.SAME_NVLINK)),
    make_job("one", shape(1)),
    make_job("huge", shape(8, tasks=9)),
    make_job("rack", shape(3, tasks=2, topology=Topology.SAME_RACK)),
    make_job("later", shape(5), eligible_at=NOW + 60),
    make_job("batch", shape(1, pool="batch")),
]
LIVE = [occupy(A, [0], 1_000, 1_000)]
SNAPSHOT = snapshot_of([A, B, C], JOBS, LIVE)


def decided(snapshot: Snapshot = SNAPSHOT) -> Plan:
    return list(decide(snapshot, PROFILE, Effort(), NOW, 0))[-1]


def check(plan: Plan, snapshot: Snapshot = SNAPSHOT) -> tuple[Violation, ...]:
    return verify(plan, snapshot, ORDER.order(tuple(snapshot.waiting.values()), NOW))


def kinds(plan: Plan, snapshot: Snapshot = SNAPSHOT) -> set[Kind]:
    return {violation.kind for violation in check(plan, snapshot)}


def test_a_decided_plan_is_sound() -> None:
    assert check(decided()) == ()
    assert {placement.job_id for placement in decided().placements} == {
        "j-pair",
        "j-one",
        "j-rack",
        "j-batch",
    }


def edit(plan: Plan, job: str, task: int = 0, **changes: object) -> Plan:
    """The plan with one task of one job changed."""
    placements = []
    for placement in plan.placements:
        if placement.job_id == JobId(job):
            tasks = list(placement.tasks)
            tasks[task] = replace(tasks[task], **changes)  # type: ignore[arg-type]
            placements.append(replace(placement, tasks=tuple(tasks)))
        else:
            placements.append(placement)
    return replace(plan, placements=tuple(placements))


def drop_task(plan: Plan) -> Plan:
    first = plan.placements[0]
    return replace(plan, placements=(replace(first, tasks=first.tasks[:-1]), *plan.placements[1:]))


WRONG: dict[str, tuple[Callable[[Plan], Plan], Kind]] = {
    "another snapshot": (lambda p: replace(p, snapshot_revision=8), Kind.REVISION),
    "unknown job": (
        lambda p: replace(
            p, placements=(replace(p.placements[0], job_id=JobId("j-x")), *p.placements[1:])
        ),
        Kind.JOB,
    ),
    "placed twice": (
        lambda p: replace(p, placements=(*p.placements, p.placements[0])),
        Kind.JOB,
    ),
    "half a gang": (drop_task, Kind.GANG),
    "a GPU too few": (lambda p: edit(p, "j-one", gpu_ids=()), Kind.RESOURCES),
    "cpu not granted": (lambda p: edit(p, "j-one", cpu_milli=1), Kind.RESOURCES),
    "no such node": (lambda p: edit(p, "j-one", node_id=NodeId("n-z")), Kind.NODE),
    "GPU of another node": (lambda p: edit(p, "j-one", gpu_ids=(GpuId("zz"),)), Kind.GPU),
    "GPU in use": (
        lambda p: edit(p, "j-one", node_id=A.id, gpu_ids=(GpuId("a-0"),)),
        Kind.GPU,
    ),
    "wrong model": (
        lambda p: edit(p, "j-pair", node_id=B.id, gpu_ids=(GpuId("b-6"), GpuId("b-7"))),
        Kind.MODEL,
    ),
    "wrong pool": (
        lambda p: edit(p, "j-batch", node_id=A.id, gpu_ids=(GpuId("a-3"),)),
        Kind.POOL,
    ),
    "leaves the NVLink domain": (
        lambda p: edit(p, "j-pair", 0, gpu_ids=(GpuId("a-1"), GpuId("a-2"))),
        Kind.TOPOLOGY,
    ),
    "leaves the rack": (
        lambda p: edit(
            p, "j-rack", 1, node_id=B.id, gpu_ids=(GpuId("b-5"), GpuId("b-6"), GpuId("b-7"))
        ),
        Kind.TOPOLOGY,
    ),
    "value of the plan": (lambda p: replace(p, value=p.value * 1.01), Kind.VALUE),
    "value of a job": (
        lambda p: replace(
            p,
            value=p.value + 1,
            bound=p.bound + 1,
            placements=(
                replace(p.placements[0], value=p.placements[0].value + 1),
                *p.placements[1:],
            ),
        ),
        Kind.VALUE,
    ),
    "bound below the value": (lambda p: replace(p, bound=p.value * 0.99), Kind.BOUND),
    "evicts nobody": (
        lambda p: replace(p, evictions=(Eviction(AttemptId("a-x"), JobId("j-one"), 1.0),)),
        Kind.EVICTION,
    ),
    "evicts for nobody": (
        lambda p: replace(p, evictions=(Eviction(LIVE[0].id, JobId("j-x"), 1.0),)),
        Kind.EVICTION,
    ),
    "a silent class": (lambda p: replace(p, waiting=p.waiting[1:]), Kind.REASON),
    "a forgotten job": (
        lambda p: replace(p, placements=p.placements[1:], value=p.value - p.placements[0].value),
        Kind.REASON,
    ),
    "an empty record": (
        lambda p: replace(p, waiting=(replace(p.waiting[0], reasons=()), *p.waiting[1:])),
        Kind.REASON,
    ),
    "a doubled record": (lambda p: replace(p, waiting=(*p.waiting, p.waiting[0])), Kind.REASON),
    "a record of nobody": (
        lambda p: replace(p, waiting=(*p.waiting, Waiting("x", p.waiting[0].reasons))),
        Kind.REASON,
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_spoilt_plan_is_rejected(case: str) -> None:
    spoil, kind = WRONG[case]
    assert kind in kinds(spoil(decided()))


@pytest.mark.parametrize("case", WRONG)
def test_the_daemons_own_look_finds_every_harm(case: str) -> None:
    """It may miss what a job is worth, never what breaks things or leaves somebody unheard."""
    plan = WRONG[case][0](decided())
    found = check(plan)
    harms = {v.kind for v in found if v.severity is Severity.UNSAFE or v.kind is Kind.REASON}
    assert harms <= {v.kind for v in check_safety(plan, SNAPSHOT, NOW)}


def test_the_daemons_own_look_accepts_a_sound_plan() -> None:
    assert check_safety(decided(), SNAPSHOT, NOW) == ()


def test_the_daemons_own_look_keeps_jobs_in_backoff() -> None:
    plan = decided()
    early = UtcSeconds(NOW - 1e9)
    assert {v.kind for v in check_safety(plan, SNAPSHOT, early)} == {Kind.JOB}


def test_a_job_in_backoff_may_not_start() -> None:
    eager = replace(SNAPSHOT.waiting[JobId("j-later")], eligible_at=NOW)
    hasty = replace(SNAPSHOT, waiting={**SNAPSHOT.waiting, eager.id: eager})
    plan = decided(hasty)
    assert eager.id in {placement.job_id for placement in plan.placements}
    assert Kind.JOB in kinds(plan)


@pytest.mark.parametrize(
    "node",
    [replace(A, cordoned=True), replace(A, health=Health.UNKNOWN)],
    ids=["cordoned", "unknown"],
)
def test_a_node_that_closed_meanwhile(node: object) -> None:
    closed = replace(SNAPSHOT, nodes={**SNAPSHOT.nodes, A.id: node})  # type: ignore[dict-item]
    assert Kind.NODE in kinds(decided(), closed)


def test_a_gpu_that_fell_ill_meanwhile() -> None:
    used = {gpu for p in decided().placements for task in p.tasks for gpu in task.gpu_ids}
    gpus = tuple(replace(gpu, health=Health.UNHEALTHY) for gpu in A.gpus)
    ill = replace(SNAPSHOT, nodes={**SNAPSHOT.nodes, A.id: replace(A, gpus=gpus)})
    assert any(gpu.id in used for gpu in A.gpus)
    assert Kind.GPU in kinds(decided(), ill)


def test_cpu_and_memory_sums_count_what_runs() -> None:
    full = replace(
        SNAPSHOT,
        live={
            **SNAPSHOT.live,
            AttemptId("a-cpu"): occupy(A, [], A.capacity.cpu_milli - 1_500, 0),
        },
    )
    assert Kind.CAPACITY in kinds(decided(), full)


def test_violations_say_what_kind_of_harm() -> None:
    untrue = check(replace(decided(), value=1e9))
    assert {violation.severity for violation in untrue} == {Severity.UNTRUE}
    unsafe = check(drop_task(decided()))
    assert Severity.UNSAFE in {violation.severity for violation in unsafe}
