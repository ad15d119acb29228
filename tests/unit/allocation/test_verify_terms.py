"""The checker's view of shares, elastic sizes, evictions and the terms of a snapshot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from support.clusters import NOW, make_job, make_node, occupy, shape, snapshot_of

from scheduler.allocation.explain import explain
from scheduler.allocation.verify import Kind, Severity, check_safety, verify
from scheduler.model.job import JobShape, WaitingJob
from scheduler.model.node import PriceClass
from scheduler.model.plan import Eviction, Placement, Plan, Reservation, TaskPlacement
from scheduler.model.ports import OrderedJob
from scheduler.model.quantity import AttemptId, GpuId, JobId, PoolName, TenantId
from scheduler.model.snapshot import LiveAttempt, Snapshot
from scheduler.model.terms import Headroom, Price, Quota, Terms

A = make_node("a")
B = make_node("b", pool="dear")
SHARE = replace(shape(0), gpu_milli=400)
VALUE = 10.0


def snapshot(
    *jobs: WaitingJob, live: Sequence[LiveAttempt] = (), terms: Terms | None = None
) -> Snapshot:
    return replace(snapshot_of([A, B], jobs, live), terms=terms or Terms())


def placed(
    name: str, what: JobShape, gpus: Sequence[Sequence[int]], value: float = VALUE, node: str = "a"
) -> Placement:
    """One task for each list of GPUs."""
    milli = what.gpu_milli or 1000
    tasks = tuple(
        TaskPlacement(
            number,
            A.id if node == "a" else B.id,
            tuple(GpuId(f"{node}-{gpu}") for gpu in own),
            what.per_task.cpu_milli,
            what.per_task.memory_mib,
            milli,
        )
        for number, own in enumerate(gpus)
    )
    return Placement(JobId(f"j-{name}"), tasks, value, "by hand")


def kinds(view: Snapshot, *placements: Placement, evictions: Sequence[Eviction] = ()) -> set[Kind]:
    """What is wrong with a plan of these parts; reasons for those left out are not looked at."""
    value = sum(each.value for each in placements) - sum(each.cost for each in evictions)
    plan = Plan(view.revision, placements, tuple(evictions), value=value, bound=1e9)
    ordered = [OrderedJob(job, rank, VALUE) for rank, job in enumerate(view.waiting.values())]
    found = {v for v in verify(plan, view, ordered) if v.kind is not Kind.REASON}
    harm = {v.kind for v in found if v.severity is Severity.UNSAFE}
    assert harm <= {v.kind for v in check_safety(plan, view, NOW)}
    return {v.kind for v in found}


def test_shares_fill_a_gpu_and_no_more() -> None:
    jobs = [make_job(f"{number}", SHARE) for number in range(3)]
    view = snapshot(*jobs)
    two = [placed("0", SHARE, [[0]]), placed("1", SHARE, [[0]])]
    assert kinds(view, *two) == set()
    assert kinds(view, *two, placed("2", SHARE, [[0]])) == {Kind.GPU}
    held = replace(occupy(A, [0]).tasks[0], gpu_milli=400)
    busy = snapshot(*jobs, live=[replace(occupy(A, [0]), tasks=(held,))])
    assert kinds(busy, two[0]) == set()
    assert kinds(busy, *two) == {Kind.GPU}


def test_a_whole_gpu_must_be_whole() -> None:
    one, whole = make_job("share", SHARE), make_job("whole", shape(1))
    view = snapshot(one, whole)
    parts = [placed("share", SHARE, [[0]]), placed("whole", shape(1), [[0]])]
    assert kinds(view, *parts) == {Kind.GPU}


def test_a_share_is_as_large_as_asked_and_of_one_gpu() -> None:
    view = snapshot(make_job("0", SHARE))
    good = placed("0", SHARE, [[0]])
    for task in (
        replace(good.tasks[0], gpu_milli=399),
        replace(good.tasks[0], gpu_ids=(GpuId("a-0"), GpuId("a-1"))),
        replace(good.tasks[0], gpu_ids=()),
    ):
        assert kinds(view, replace(good, tasks=(task,))) == {Kind.RESOURCES}


@pytest.mark.parametrize(("tasks", "wrong"), [(1, True), (2, False), (4, False), (5, True)])
def test_elastic_sizes_and_what_they_are_worth(tasks: int, wrong: bool) -> None:  # noqa: FBT001
    what = replace(shape(1, tasks=2), tasks_max=4)
    view = snapshot(make_job("0", what))
    value = VALUE * (1 + 0.5 * (tasks - 2) / 2)
    found = kinds(view, placed("0", what, [[gpu] for gpu in range(tasks)], value))
    assert found == ({Kind.GANG} if wrong else set())


def test_a_grown_gang_is_not_worth_its_smallest_size() -> None:
    what = replace(shape(1, tasks=2), tasks_max=4)
    view = snapshot(make_job("0", what))
    assert kinds(view, placed("0", what, [[0], [1], [2]])) == {Kind.VALUE}


def test_a_task_on_two_models_is_found() -> None:
    mixed = replace(A, gpus=(*A.gpus[:7], replace(A.gpus[7], model="V100")))
    view = replace(snapshot(make_job("0", shape(2))), nodes={A.id: mixed})
    assert kinds(view, placed("0", shape(2), [[6, 7]])) == {Kind.MODEL}


def test_prices_are_part_of_a_placements_value() -> None:
    prices = (Price(PriceClass.RESERVED, 1.0), Price(PriceClass.RESERVED, 3.0, PoolName("dear")))
    terms = Terms(prices=prices, price_weight=0.5)
    view = snapshot(make_job("0", shape(2)), make_job("1", SHARE), terms=terms)
    assert kinds(view, placed("0", shape(2), [[0, 1]], VALUE - 1.0)) == set()
    assert kinds(view, placed("0", shape(2), [[0, 1]], VALUE - 3.0, "b")) == set()
    assert kinds(view, placed("1", SHARE, [[0]], VALUE - 0.6, "b")) == set()
    assert kinds(view, placed("0", shape(2), [[0, 1]], VALUE, "b")) == {Kind.VALUE}


def test_an_evicted_attempt_holds_its_place_until_it_is_gone() -> None:
    live = occupy(A, range(7), 90_000)
    view = snapshot(make_job("0", shape(1)), live=[live])
    stop = Eviction(live.id, JobId("j-0"), 2.5)
    assert kinds(view, placed("0", shape(1), [[0]]), evictions=[stop]) == {Kind.GPU}
    assert kinds(view, placed("0", shape(1), [[7]]), evictions=[stop]) == set()
    assert kinds(view, evictions=[stop, stop]) == {Kind.EVICTION}


def test_only_those_are_evicted_who_may_be_and_are_not_leaving() -> None:
    live, job = occupy(A, range(7)), make_job("0", shape(1))
    stop = Eviction(live.id, JobId("j-0"), 2.5)
    assert kinds(snapshot(job, live=[live]), evictions=[stop]) == set()
    kept = replace(live, job=replace(live.job, preemptible=False))
    for attempt in (replace(live, stopping=True), kept):
        assert kinds(snapshot(job, live=[attempt]), evictions=[stop]) == {Kind.EVICTION}


def test_a_reservation_may_be_worth_something() -> None:
    view = snapshot(make_job("0", shape(8)), live=[occupy(A, [0])])
    kept = Reservation(JobId("j-0"), (A.id,), NOW, value=4.0)
    told = explain(view, (), NOW)
    plan = Plan(view.revision, reservations=(kept,), waiting=told, value=4.0, bound=9.0)
    assert check_safety(plan, view, NOW) == ()
    worthless = replace(plan, reservations=())
    assert {v.kind for v in check_safety(worthless, view, NOW)} == {Kind.VALUE}


def test_quotas_of_tenants_and_cohorts() -> None:
    tenant, other = TenantId("default"), TenantId("other")
    live = occupy(A, [7])
    start = placed("0", shape(2), [[0, 1]])
    for quotas, wrong in (
        ((Quota(tenant, 3_000),), False),
        ((Quota(tenant, 2_000),), True),
        ((Quota(tenant, 2_000, 1_000),), True),
        ((Quota(tenant, 2_000, 1_000, "c"), Quota(other, 1_000, 0, "c")), False),
        ((Quota(tenant, 2_000, 9_000, "c"), Quota(other, 500, 0, "c")), True),
        ((Quota(other, 0),), False),
    ):
        view = snapshot(make_job("0", shape(2)), live=[live], terms=Terms(quotas=quotas))
        assert kinds(view, start) == ({Kind.QUOTA} if wrong else set())
        assert kinds(view) == set(), "who takes nothing may hold too much"


def test_reserved_blocks_stay() -> None:
    view = snapshot(make_job("0", SHARE), terms=Terms(headroom=(Headroom(None, 8, 2),)))
    assert kinds(view, placed("0", SHARE, [[0]])) == {Kind.HEADROOM}
    one = snapshot(make_job("0", SHARE), terms=Terms(headroom=(Headroom(None, 8, 1),)))
    assert kinds(one, placed("0", SHARE, [[0]])) == set()
    dear = snapshot(make_job("0", SHARE), terms=Terms(headroom=(Headroom(PoolName("dear"), 4, 2),)))
    assert kinds(dear, placed("0", SHARE, [[0]])) == set()
    assert kinds(dear, placed("0", SHARE, [[0]], node="b")) == {Kind.HEADROOM}
    soft = Terms(headroom=(Headroom(None, 8, 2, value=3.0),))
    assert kinds(snapshot(make_job("0", SHARE), terms=soft), placed("0", SHARE, [[0]])) == set()


def test_nobody_is_evicted_who_does_not_run() -> None:
    view = snapshot(make_job("0", SHARE))
    stop = Eviction(AttemptId("a-x"), JobId("j-0"), 1.0)
    assert kinds(view, placed("0", SHARE, [[0]]), evictions=[stop]) == {Kind.EVICTION}
