from __future__ import annotations

from dataclasses import replace

import pytest
from support.clusters import NOW, make_job, shape

from policies.fifo import Fifo
from policies.least_attained import LeastAttained
from policies.line import in_line, size_of
from policies.service_value import AGE_SHARE, ServiceValue, level_of, value_of
from policies.shortest_first import ShortestFirst, SmallestFirst
from scheduler.model.job import JobShape, WaitingJob
from scheduler.model.ports import QueueOrder
from scheduler.model.quantity import Resources
from scheduler.model.terms import EvictionCost

HOUR_S = 3_600.0
ORDERS: list[QueueOrder] = [
    Fifo(),
    ShortestFirst(),
    SmallestFirst(),
    LeastAttained(),
    ServiceValue(),
]


def ids(order: QueueOrder, *jobs: WaitingJob) -> list[str]:
    return [entry.job.id.removeprefix("j-") for entry in order.order(jobs, NOW)]


def job(
    name: str,
    gpus: int = 1,
    *,
    attained_s: float = 0.0,
    runtime_s: float | None = None,
    submitted_at: float = 9_000.0,
) -> WaitingJob:
    made = make_job(name, shape(gpus), submitted_at=submitted_at)
    return replace(made, attained_s=attained_s, runtime_s=runtime_s)


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order.name)
def test_every_order_leaves_out_backoffs_ranks_all_others_and_breaks_ties_by_age(
    order: QueueOrder,
) -> None:
    jobs = [
        make_job("b", shape(), submitted_at=5.0),
        make_job("a", shape(), submitted_at=5.0),
        make_job("old", shape(), submitted_at=4.0),
        make_job("later", shape(), eligible_at=NOW + 1),
    ]
    ordered = order.order(jobs, NOW)
    assert [entry.job.id for entry in ordered] == ["j-old", "j-a", "j-b"]
    assert [entry.rank for entry in ordered] == [0, 1, 2]
    assert all(entry.value > 0 for entry in ordered)
    assert order.order(jobs[::-1], NOW) == ordered


def test_in_a_line_a_job_is_worth_its_size() -> None:
    jobs = [job("one"), job("four", 4)]
    assert [entry.value for entry in in_line(jobs, NOW, lambda each: each.id)] == [4.0, 1.0]
    assert size_of(JobShape(2, Resources(0, 100, 100), gpu_milli=250)) == 0.5
    assert size_of(shape(0, tasks=2, cpu_milli=16_000)) == 2.0


def test_shortest_first_goes_by_what_is_left_and_knows_when_nobody_knows() -> None:
    jobs = (job("long", runtime_s=90.0), job("unknown"), job("short", 8, runtime_s=10.0))
    assert ids(ShortestFirst(), *jobs) == ["short", "long", "unknown"]
    assert ids(SmallestFirst(), job("one", runtime_s=90.0), job("eight", 8, runtime_s=20.0)) == [
        "one",
        "eight",
    ]


def test_least_attained_has_levels_of_service_and_fifo_inside() -> None:
    jobs = (
        job("old-veteran", 8, attained_s=HOUR_S, submitted_at=1.0),
        job("second-level", 1, attained_s=HOUR_S, submitted_at=2.0),
        job("young", 8, attained_s=449.0, submitted_at=9.0),
        job("newest", submitted_at=10.0),
    )
    assert ids(LeastAttained(), *jobs) == ["young", "newest", "second-level", "old-veteran"]
    assert ids(LeastAttained(levels_gpu_s=()), *jobs)[0] == "old-veteran"


def test_service_halves_the_value_of_a_gpu_with_every_doubling() -> None:
    assert [level_of(gpu_s) for gpu_s in (0, 449, 450, 899, 900, 1_800, 1e12)] == [
        0,
        0,
        1,
        1,
        2,
        3,
        14,
    ]
    fresh, served = job("a"), job("b", attained_s=900.0)
    assert value_of(fresh, 1.0, NOW) == pytest.approx(4 * value_of(served, 1.0, NOW))
    assert value_of(job("c", 8), 8.0, NOW) == pytest.approx(8 * value_of(fresh, 1.0, NOW))
    urgent = replace(fresh, priority=60)
    assert value_of(urgent, 1.0, NOW) == pytest.approx(2 * value_of(fresh, 1.0, NOW))


def test_equals_do_not_take_turns() -> None:
    """What age adds is less than what keeps a running job in its place."""
    newest, oldest = (value_of(job("x", submitted_at=at), 1.0, NOW) for at in (NOW, -1e9))
    assert oldest > newest
    assert oldest / newest <= 1 + AGE_SHARE
    assert EvictionCost().keep_bonus > AGE_SHARE
