"""Invariants of decisions that go down the line: in order, passing over, reserved, repacked."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.clusters import MIXES, NOW, make_job, make_node, random_instance, shape, snapshot_of

from policies.best_fit import BestFit
from policies.registry import PROFILES, profile_named
from scheduler.allocation.counts import Counts
from scheduler.allocation.gangs import gang_of
from scheduler.allocation.reservation import shadow_of
from scheduler.allocation.room import Room
from scheduler.allocation.sequential import decide_in_line
from scheduler.allocation.verify import verify
from scheduler.model.job import WaitingJob
from scheduler.model.plan import Plan
from scheduler.model.ports import Admission, DecisionMeta, Effort, OrderedJob, Profile
from scheduler.model.quantity import AttemptId, JobId, UtcSeconds
from scheduler.model.snapshot import LiveAttempt, Snapshot
from scheduler.simulator.ledger import Ledger

LINES = sorted(name for name in PROFILES if profile_named(name).admission is not Admission.KNAPSACK)
few = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


def told(snapshot: Snapshot, seed: int) -> Snapshot:
    """The same with expected run times for most jobs."""
    rng = random.Random(seed)

    def runtime_s() -> float | None:
        return rng.choice([None, *(rng.uniform(10.0, 5_000.0) for _ in range(9))])

    waiting = {key: replace(job, runtime_s=runtime_s()) for key, job in snapshot.waiting.items()}
    live = {
        key: replace(
            attempt, job=replace(attempt.job, runtime_s=runtime_s()), since=UtcSeconds(NOW - 5)
        )
        for key, attempt in snapshot.live.items()
    }
    return Snapshot(snapshot.revision, snapshot.nodes, live, waiting, snapshot.terms)


def instance(seed: int, mix: str) -> Snapshot:
    return told(random_instance(seed, mix), seed)


instances = st.builds(instance, st.integers(0, 10_000), st.sampled_from(sorted(MIXES)))


def decided(snapshot: Snapshot, profile: Profile) -> tuple[Plan, list[OrderedJob]]:
    plan, ordered = decide_in_line(snapshot, profile, Effort(), NOW, seed=0)
    return plan, list(ordered)


@pytest.mark.parametrize("name", LINES)
@few
@given(instances)
def test_every_plan_is_sound_and_repeatable(name: str, snapshot: Snapshot) -> None:
    plan, ordered = decided(snapshot, profile_named(name))
    assert not verify(plan, snapshot, ordered)
    assert plan.bound >= plan.value
    again = Snapshot(
        snapshot.revision,
        dict(list(snapshot.nodes.items())[::-1]),
        dict(list(snapshot.live.items())[::-1]),
        dict(list(snapshot.waiting.items())[::-1]),
    )
    assert decided(again, profile_named(name))[0] == plan


@few
@given(instances)
def test_in_order_nobody_passes(snapshot: Snapshot) -> None:
    plan, ordered = decided(snapshot, profile_named("fifo"))
    started = {placement.job_id for placement in plan.placements}
    passed = [entry.job.id in started for entry in ordered]
    assert passed == sorted(passed, reverse=True)


@few
@given(instances)
def test_whoever_is_passed_over_does_not_fit(snapshot: Snapshot) -> None:
    plan, ordered = decided(snapshot, profile_named("fifo-skip"))
    started = {placement.job_id for placement in plan.placements}
    after = carried_out(snapshot, plan)
    room = Room(after, BestFit(), seed=0)
    for entry in ordered:
        if entry.job.id not in started:
            assert room.place(gang_of(entry)) is None


@few
@given(instances)
def test_easy_does_not_delay_the_head(snapshot: Snapshot) -> None:
    plan, ordered = decided(snapshot, profile_named("easy"))
    started = {placement.job_id for placement in plan.placements}
    left = [entry for entry in ordered if entry.job.id not in started]
    if not plan.reservations:
        return
    (reserved,) = plan.reservations
    assert reserved.job_id == left[0].job.id
    assert reserved.not_before >= NOW
    after = carried_out(snapshot, plan)
    again = shadow_of(after, BestFit(), 0, (), gang_of(left[0]), NOW)
    assert again.at <= reserved.not_before


def carried_out(snapshot: Snapshot, plan: Plan) -> Snapshot:
    """The snapshot after the plan, with nobody evicted."""
    live = dict(snapshot.live)
    waiting = dict(snapshot.waiting)
    for placement in plan.placements:
        attempt_id = AttemptId(f"a-{placement.job_id}")
        job = waiting.pop(placement.job_id)
        live[attempt_id] = LiveAttempt(attempt_id, job, NOW, placement.tasks)
    return Snapshot(snapshot.revision, snapshot.nodes, live, waiting, snapshot.terms)


# --- Repacking ----------------------------------------------------------------------------------

ROUNDS_MAX = 12
SIZES = (1, 1, 1, 2, 4, 8, 16)


@st.composite
def crowds(draw: st.DrawFn) -> tuple[Snapshot, list[WaitingJob]]:
    """Nodes of 8 GPUs and more jobs than fit; sizes divide each other, as GPU jobs' do."""
    nodes = [make_node(f"n{number}") for number in range(draw(st.integers(2, 5)))]
    jobs = []
    for number in range(draw(st.integers(5, 40))):
        gpus = draw(st.sampled_from(SIZES))
        tasks, each = (1, gpus) if gpus <= 8 else (gpus // 8, 8)
        runtime_s = float(draw(st.integers(1, 1_000)))
        what = shape(each, tasks=tasks, cpu_milli=0, memory_mib=0)
        jobs.append(replace(make_job(f"{number:02}", what), runtime_s=runtime_s))
    return snapshot_of(nodes, ()), jobs


@few
@given(crowds(), st.randoms(use_true_random=False))
def test_who_runs_after_repacking_does_not_depend_on_who_ran_before(
    crowd: tuple[Snapshot, list[WaitingJob]], rng: random.Random
) -> None:
    empty, jobs = crowd
    profile = profile_named("srtf-oracle")
    line = profile.order.order(jobs, NOW)
    shapes = [entry.job.shape for entry in line]
    entitled = {entry.job.id for entry in Counts(empty.columns.table, (), shapes).admitted(line)}
    ran_before = rng.sample(jobs, len(jobs) // 2)
    assert entitled <= running_after_repacking(empty, jobs, ran_before, profile)
    assert entitled <= running_after_repacking(empty, jobs, [], profile)


def running_after_repacking(
    empty: Snapshot, jobs: list[WaitingJob], ran_before: list[WaitingJob], profile: Profile
) -> set[JobId]:
    ledger = Ledger(empty.nodes.values())
    for job in ran_before:
        ledger.submit(job)
    round_of(ledger, profile_named("fifo-skip"), UtcSeconds(NOW - 1))
    for job in jobs:
        if job.id not in ledger.waiting and ledger.attempt_of(job.id) is None:
            ledger.submit(job)
    for _ in range(ROUNDS_MAX):
        if not round_of(ledger, profile, NOW):
            return {attempt.job_id for attempt in ledger.live.values()}
    raise AssertionError("repacking does not come to an end")


def round_of(ledger: Ledger, profile: Profile, now: UtcSeconds) -> bool:
    """One decision, carried out; whether anything changed."""
    snapshot = Snapshot().apply(asyncio.run(ledger.load_delta(0)))
    plan, ordered = decide_in_line(snapshot, profile, Effort(), now, seed=0)
    assert not verify(plan, snapshot, ordered)
    report = asyncio.run(ledger.commit(plan, DecisionMeta(profile.name, 0.0), now))
    assert not report.refused
    for attempt_id in report.evicted:
        attempt = ledger.live[attempt_id]
        ledger.end(attempt_id, attempt.as_waiting(now))
    return bool(report.placed or report.evicted)
