from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import pytest
from support.simulated import (
    ends,
    outcome_of,
    run,
    sim_job,
    small_cluster,
    spans,
    untimed,
    workload,
)

from policies.best_fit import BestFit
from policies.fifo import Fifo
from policies.registry import PROFILES, profile_named
from policies.shortest_first import ShortestFirst
from scheduler.decide import decide
from scheduler.model.job import WaitingJob
from scheduler.model.plan import Plan
from scheduler.model.ports import Admission, Effort, OrderedJob, Profile, QueueOrder, Sees
from scheduler.model.quantity import UtcSeconds
from scheduler.model.snapshot import Snapshot
from scheduler.model.terms import EvictionCost, Terms
from scheduler.simulator.career import Overheads
from scheduler.simulator.engine import Options, SimulationError, simulate
from scheduler.simulator.outages import Outages
from scheduler.simulator.workload import Arrivals

ONE = small_cluster(1)


def test_a_job_starts_on_arrival_and_runs_for_its_duration() -> None:
    result = run("fifo", [sim_job("a", 5.0, 10.0, 8), sim_job("b", 6.0, 3.0, 8)], ONE)
    assert spans(result) == {"a": [(5.0, 15.0)], "b": [(15.0, 18.0)]}
    assert result.gpus_total == 8
    assert [job.lost_s for job in result.jobs] == [0.0, 0.0]


LINE = [
    sim_job("big", 0.0, 10.0, 6),
    sim_job("head", 1.0, 10.0, 4),
    sim_job("long", 2.0, 20.0, 2),
    sim_job("short", 3.0, 5.0, 2),
]


def test_fifo_lets_nobody_pass() -> None:
    assert ends(run("fifo", LINE, ONE)) == {"big": 10, "head": 20, "long": 30, "short": 15}


def test_fifo_skip_lets_everybody_pass() -> None:
    assert ends(run("fifo-skip", LINE, ONE)) == {"big": 10, "head": 20, "long": 22, "short": 15}


def test_sjf_knows_durations() -> None:
    result = run("sjf-oracle", [*LINE, sim_job("tiny", 4.0, 1.0, 4)], ONE)
    assert ends(result) == {"big": 10, "head": 21, "long": 22, "short": 15, "tiny": 11}


def test_easy_keeps_a_place_for_the_head_and_lets_pass_what_does_not_delay_it() -> None:
    jobs = [
        sim_job("big", 0.0, 10.0, 6, limit_s=10.0),
        sim_job("head", 1.0, 10.0, 8, limit_s=10.0),
        sim_job("long", 2.0, 20.0, 2, limit_s=20.0),
        sim_job("short", 3.0, 5.0, 2, limit_s=5.0),
    ]
    assert ends(run("easy", jobs, ONE)) == {"big": 10, "head": 20, "long": 40, "short": 8}


def test_easy_lets_a_long_job_pass_beside_the_head() -> None:
    jobs = [
        sim_job("big", 0.0, 10.0, 6, limit_s=10.0),
        sim_job("head", 1.0, 10.0, 6, limit_s=10.0),
        sim_job("long", 2.0, 30.0, 2, limit_s=30.0),
    ]
    assert spans(run("easy", jobs, ONE))["long"] == [(2.0, 32.0)]


def test_where_a_trace_has_no_limits_durations_stand_in() -> None:
    exact = [replace(job, limit_s=job.duration_s) for job in LINE]
    assert ends(run("easy", LINE, ONE)) == ends(run("easy", exact, ONE))


def test_srtf_stops_the_longer_job_and_keeps_its_progress() -> None:
    jobs = [sim_job("long", 0.0, 100.0, 8), sim_job("short", 10.0, 5.0, 8)]
    result = run("srtf-oracle", jobs, ONE)
    assert spans(result) == {"long": [(0.0, 10.0), (15.0, 105.0)], "short": [(10.0, 15.0)]}
    long = outcome_of(result, "long")
    assert (long.preemptions, long.restarts, long.lost_s) == (1, 1, 0.0)


def test_a_shorter_job_is_served_on_arrival_though_one_like_it_waits() -> None:
    jobs = [sim_job("a", 0.0, 100.0, 8), sim_job("b", 1.0, 100.0, 8), sim_job("c", 2.0, 5.0, 8)]
    result = run("srtf-oracle", jobs, ONE)
    assert spans(result)["c"] == [(2.0, 7.0)]


def test_a_restart_costs_time_that_does_not_count() -> None:
    jobs = [sim_job("long", 0.0, 100.0, 8), sim_job("short", 10.0, 5.0, 8)]
    result = run("srtf-oracle", jobs, ONE, Options(overheads=Overheads(restart_cost_s=7.0)))
    long = outcome_of(result, "long")
    assert long.end_s == 112.0
    assert long.lost_s == 7.0
    assert [(r.useful_from_s, r.useful_to_s) for r in long.runs] == [(0.0, 10.0), (22.0, 112.0)]


def test_nobody_is_stopped_whose_restart_costs_more_than_it_wins() -> None:
    jobs = [sim_job("long", 0.0, 200_000.0, 8), sim_job("short", 100_000.0, 60.0, 8)]
    assert ends(run("knapsack", jobs, ONE)) == {"long": 200_060.0, "short": 100_060.0}
    dear = Options(overheads=Overheads(restart_cost_s=1e7))
    assert ends(run("knapsack", jobs, ONE, dear)) == {"long": 200_000.0, "short": 200_060.0}
    told = Terms(eviction=EvictionCost(restart_s=1.0))
    assert ends(run("knapsack", jobs, ONE, replace(dear, terms=told)))["short"] == 100_060.0


def test_who_may_not_be_preempted_is_not() -> None:
    jobs = [sim_job("long", 0.0, 100.0, 8, preemptible=False), sim_job("short", 10.0, 5.0, 8)]
    assert spans(run("srtf-oracle", jobs, ONE))["long"] == [(0.0, 100.0)]


def test_las_gives_way_to_who_had_less() -> None:
    jobs = [sim_job("old", 0.0, 8_000.0, 8), sim_job("new", 4_000.0, 60.0, 8)]
    result = run("las", jobs, ONE)
    assert spans(result)["new"] == [(4_000.0, 4_060.0)], "8 GPUs leave the first level in 450 s"
    assert spans(result)["old"] == [(0.0, 4_000.0), (4_060.0, 8_060.0)]


def test_running_jobs_move_when_free_gpus_are_scattered() -> None:
    nodes = small_cluster(2)
    jobs = [
        sim_job("a", 0.0, 100.0, 5),
        sim_job("b", 0.0, 200.0, 5),
        sim_job("c", 0.0, 50.0, 3),
        sim_job("d", 0.0, 50.0, 3),
        sim_job("late", 60.0, 10.0, 6),
    ]
    moved = run("srtf-oracle", jobs, nodes)
    assert spans(moved)["late"] == [(60.0, 70.0)], "one of the fives yields or moves"
    assert sum(job.preemptions for job in moved.jobs) == 1


def test_a_job_that_can_never_fit_is_refused_and_blocks_nobody() -> None:
    result = run("fifo", [sim_job("huge", 0.0, 1.0, 16), sim_job("a", 1.0, 2.0)], ONE)
    assert ends(result) == {"huge": None, "a": 3.0}
    assert outcome_of(result, "huge").first_start_s is None


def test_the_clock_is_the_workloads() -> None:
    result = run("fifo", [sim_job("a", 0.0, 10.0, 8), sim_job("b", 1.0, 1.0, 8)], ONE)
    assert [
        (cycle.at_s, cycle.placed, cycle.waiting, cycle.gpus_used) for cycle in result.cycles
    ] == [
        (0.0, 1, 0, 8.0),
        (1.0, 0, 1, 8.0),
        (10.0, 1, 0, 8.0),
    ]


# --- What policies may see --------------------------------------------------------------------


@dataclass
class Curious:
    """Keeps what it was shown."""

    real: QueueOrder = field(default_factory=Fifo)
    name: str = "curious"
    seen: list[WaitingJob] = field(default_factory=list)

    def order(self, waiting: Sequence[WaitingJob], now: UtcSeconds) -> Sequence[OrderedJob]:
        self.seen += waiting
        return self.real.order(waiting, now)


@pytest.mark.parametrize(
    ("sees", "shown"), [(Sees.NOTHING, None), (Sees.LIMITS, 30.0), (Sees.DURATIONS, 20.0)]
)
def test_a_policy_sees_of_run_times_what_its_profile_says(sees: Sees, shown: float | None) -> None:
    order = Curious()
    profile = Profile("curious", order, BestFit(), Admission.SKIP, sees=sees)
    simulate(workload(sim_job("a", 0.0, 20.0, limit_s=30.0)), ONE, profile)
    assert {job.runtime_s for job in order.seen} == {shown}


def test_an_evicted_job_comes_back_with_what_it_has_had_and_what_is_left() -> None:
    order = Curious(real=ShortestFirst())
    profile = replace(profile_named("srtf-oracle"), order=order)
    jobs = [sim_job("long", 0.0, 100.0, 8), sim_job("short", 10.0, 5.0, 8)]
    options = Options(overheads=Overheads(restart_cost_s=7.0))
    simulate(workload(*jobs), ONE, profile, options)
    last = order.seen[-1]
    assert (last.attempts, last.attained_s, last.runtime_s) == (1, 10.0, 97.0)


# --- Failures ---------------------------------------------------------------------------------


FAILING = Options(
    seed=3, outages=Outages(mtbf_s=200.0, mttr_s=20.0), overheads=Overheads(checkpoint_every_s=30.0)
)


def test_what_lies_after_the_last_checkpoint_is_done_again() -> None:
    jobs = [sim_job(f"j{number}", 5.0 * number, 90.0, 2) for number in range(12)]
    result = run("fifo", jobs, small_cluster(3), FAILING)
    assert all(job.end_s is not None for job in result.jobs), "repairs let everybody finish"
    assert any(job.restarts for job in result.jobs)
    for job in result.jobs:
        useful = [r.useful_to_s - r.useful_from_s for r in job.runs]
        assert sum(useful) == pytest.approx(90.0)
        assert all(done % 30.0 == pytest.approx(0.0) for done in useful[:-1])
        assert job.preemptions == 0
        held = sum(r.end_s - r.start_s for r in job.runs)
        assert job.lost_s == pytest.approx(held - 90.0)


def test_nothing_runs_on_a_node_that_is_down() -> None:
    jobs = [sim_job("a", 0.0, 1_000.0, 8)]
    result = run("fifo", jobs, ONE, replace(FAILING, seed=1))
    runs = outcome_of(result, "a").runs
    assert len(runs) > 1
    assert all(later.start_s > sooner.end_s for sooner, later in pairwise(runs))


def test_equal_seeds_give_equal_results_and_others_do_not() -> None:
    jobs = [sim_job(f"j{number}", 5.0 * number, 90.0, 2) for number in range(12)]
    nodes = small_cluster(3)
    first, again = (untimed(run("fifo", jobs, nodes, FAILING)) for _ in range(2))
    assert first == again
    assert untimed(run("fifo", jobs, nodes, replace(FAILING, seed=4))).jobs != first.jobs


# --- Replays ----------------------------------------------------------------------------------


def test_a_replay_keeps_what_fits_and_forgets_what_does_not() -> None:
    jobs = [
        sim_job("a", 0.0, 1.0, 6),
        sim_job("b", 1.0, 1.0, 4),
        sim_job("c", 2.0, 1.0, gpu_milli=500),
        sim_job("d", 3.0, 1.0, 2),
        sim_job("e", 4.0, 1.0, gpu_milli=400),
    ]
    profile = profile_named("best-fit")
    result = simulate(workload(*jobs, arrivals=Arrivals.REPLAY), ONE, profile)
    started = {job.id: job.first_start_s for job in result.jobs}
    assert started == {"a": 1.0, "b": None, "c": 3.0, "d": None, "e": 5.0}
    assert result.cycles[-1].gpus_used == pytest.approx(6.9)
    assert {job.end_s for job in result.jobs} == {None}


def test_a_batch_is_decided_at_once() -> None:
    jobs = [sim_job(f"j{number}", float(number), 1.0) for number in range(5)]
    profile = profile_named("best-fit")
    replay = workload(*jobs, arrivals=Arrivals.REPLAY)
    result = simulate(replay, ONE, profile, Options(batch=2))
    assert [(cycle.at_s, cycle.placed) for cycle in result.cycles] == [(2.0, 2), (4.0, 2), (5.0, 1)]


# --- The engine itself ------------------------------------------------------------------------


def test_progress_is_told() -> None:
    told: list[tuple[int, int]] = []
    jobs = workload(sim_job("a", 0.0, 10.0), sim_job("huge", 0.0, 1.0, 99), sim_job("b", 1.0, 1.0))
    simulate(jobs, ONE, profile_named("fifo"), progress=lambda *at: told.append(at))
    assert told[-1] == (3, 3)


def test_an_unsound_plan_is_an_error(tmp_path: Path) -> None:
    def twice(
        snapshot: Snapshot, profile: Profile, effort: Effort, now: UtcSeconds, seed: int
    ) -> Iterator[Plan]:
        for plan in decide(snapshot, profile, effort, now, seed):
            yield replace(plan, placements=plan.placements * 2)

    options = Options(rejected_plans=tmp_path)
    with pytest.raises(SimulationError, match="placed more than once"):
        simulate(
            workload(sim_job("a", 0.0, 1.0)), ONE, profile_named("fifo"), options, decider=twice
        )
    assert len(list(tmp_path.iterdir())) == 1, "kept for replay"


@pytest.mark.parametrize("policy", sorted(PROFILES))
def test_every_profile_brings_a_workload_to_its_end(policy: str) -> None:
    jobs = [
        sim_job(f"j{number}", 3.0 * number, 10.0 + 7.0 * (number % 5), (1, 2, 8, 16)[number % 4])
        for number in range(20)
    ]
    result = run(policy, jobs, small_cluster(2))
    assert all(job.end_s is not None for job in result.jobs)
    assert result.policy == policy
