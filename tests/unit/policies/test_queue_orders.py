from __future__ import annotations

import pytest
from support.clusters import NOW, make_job, shape

from policies.fifo import Fifo
from policies.priority_age import VALUE_MAX, VALUE_MIN, PriorityAge, gpu_equivalents
from policies.registry import PROFILES, profile_named
from scheduler.model.job import WaitingJob
from scheduler.model.quantity import Resources, UtcSeconds


def test_priority_beats_age_and_age_beats_id() -> None:
    jobs = [
        make_job("young", shape(), priority=50, submitted_at=9_500),
        make_job("old", shape(), priority=50, submitted_at=9_000),
        make_job("urgent", shape(), priority=60, submitted_at=9_900),
        make_job("also-old", shape(), priority=50, submitted_at=9_000),
    ]
    ordered = PriorityAge().order(jobs, NOW)
    assert [entry.job.id for entry in ordered] == ["j-urgent", "j-also-old", "j-old", "j-young"]
    assert [entry.rank for entry in ordered] == [0, 1, 2, 3]


@pytest.mark.parametrize("order", [PriorityAge(), Fifo()], ids=lambda order: order.name)
def test_jobs_in_backoff_are_left_out(order: PriorityAge | Fifo) -> None:
    waits = make_job("waits", shape(), eligible_at=NOW + 0.1)
    ready = make_job("ready", shape(), eligible_at=NOW)
    assert [entry.job for entry in order.order([waits, ready], NOW)] == [ready]


def value_of(job: WaitingJob, now: UtcSeconds) -> float:
    (entry,) = PriorityAge().order([job], now)
    return entry.value


def test_value_rises_with_priority_size_and_age() -> None:
    base = value_of(make_job("a", shape(2), priority=50), NOW)
    assert value_of(make_job("a", shape(2), priority=60), NOW) == pytest.approx(2 * base)
    assert base < value_of(make_job("a", shape(4)), NOW) < 2 * base
    assert value_of(make_job("a", shape(2), submitted_at=1_000), NOW) > base
    assert value_of(make_job("a", shape(2), submitted_at=NOW + 60), NOW) < base


def test_size_is_the_dominant_resource_in_gpus() -> None:
    assert gpu_equivalents(Resources(4, 1_000, 1_000)) == 4
    assert gpu_equivalents(Resources(1, 64_000, 1_000)) == 4
    assert gpu_equivalents(Resources(0, 100, 262_144)) == 2
    assert gpu_equivalents(Resources(0, 1, 1)) == 0.1


def test_values_stay_where_solvers_are_accurate() -> None:
    small = make_job("s", shape(0, cpu_milli=1, memory_mib=0), priority=0, submitted_at=NOW)
    large = make_job("l", shape(8, tasks=512), priority=100, submitted_at=0.0)
    assert value_of(small, NOW) >= VALUE_MIN
    assert value_of(large, UtcSeconds(1e9)) == VALUE_MAX


@pytest.mark.parametrize("policy", ["priority-preempt", "knapsack"])
def test_priorities_of_a_cluster_are_told_apart_and_break_nothing(policy: str) -> None:
    """Those of Kubernetes reach from -2**31 to 2,000,001,000."""
    priorities = [-(2**31), -5, 0, 100, 101, 1_000, 1_000_000, 2_000_001_000]
    jobs = [make_job(f"{each}", shape(), priority=each, submitted_at=NOW) for each in priorities]
    ordered = profile_named(policy).order.order(jobs, NOW)
    assert [entry.job.priority for entry in ordered[:-2]] == priorities[:1:-1]
    values = [entry.value for entry in ordered]
    assert values[:5] == sorted(set(values[:5]), reverse=True)
    assert all(VALUE_MIN <= value <= VALUE_MAX for value in values)


def test_fifo_looks_only_at_submission() -> None:
    jobs = [
        make_job("second", shape(), priority=100, submitted_at=9_500),
        make_job("first", shape(), priority=0, submitted_at=9_000),
    ]
    first, second = Fifo().order(jobs, NOW)
    assert (first.job.id, second.job.id) == ("j-first", "j-second")


def test_registry_gives_every_order_under_its_own_name() -> None:
    assert [profile_named(name).name for name in PROFILES] == list(PROFILES)


def test_registry_names_what_exists() -> None:
    with pytest.raises(ValueError, match=r"known: .*fifo.*priority-age"):
        profile_named("lottery")
