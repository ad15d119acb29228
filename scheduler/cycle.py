"""One scheduling cycle, on one screen: snapshot, decide, verify, commit."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog

from scheduler import failpoints
from scheduler.allocation.verify import Violation, check_safety
from scheduler.clock import Clock
from scheduler.model.plan import Plan, ReasonCode
from scheduler.model.ports import (
    CommitReport,
    CycleStore,
    DecideResult,
    DecisionMeta,
    Effort,
    Preemption,
    Profile,
    Solver,
)
from scheduler.model.quantity import AttemptId, DecisionId, JobId, UtcSeconds
from scheduler.model.snapshot import Snapshot, SnapshotDelta
from scheduler.rejected_plans import keep

log = structlog.get_logger(__name__)

WANT_OF_ROOM = frozenset(
    {
        ReasonCode.NEVER_FITS,
        ReasonCode.BLOCKED_BY_CONFIG,
        ReasonCode.WAITING_CAPACITY,
        ReasonCode.FRAGMENTED,
        ReasonCode.WAITING_GANG,
        ReasonCode.WAITING_TOPOLOGY,
        ReasonCode.WAITING_QUOTA,
        ReasonCode.RESERVED_HEADROOM,
    }
)
"""Reasons that only more room can lift, or other terms, whoever else of the class waits."""


@dataclass(frozen=True, slots=True)
class CycleContext:
    """What a cycle works with; built once by the composition root.

    Attributes:
        store: what is read and written, under the leader epoch this process holds.
        profile: the policy; the solver is asked for it by name.
        hard_limit_s: wall time after which the solver process is killed.
        rejected_plans: folder where plans that failed verification are kept for replay.
    """

    store: CycleStore
    solver: Solver
    profile: Profile
    effort: Effort
    seed: int
    hard_limit_s: float
    clock: Clock
    rejected_plans: Path


@dataclass(frozen=True, slots=True)
class CycleReport:
    """What one cycle did.

    Attributes:
        waiting: PENDING jobs when it began.
        next_eligible_at: when the next job may start that may not yet; None without.
        decided: whether there was anything to decide, and a plan came of it.
        failed: there was something to decide, and no sound plan came; the next cycle must try
            again, after a rest: the same plan may come again.
        killed: the solver process had to be killed; the plan is what it had sent by then.
        rejected: violations of a plan that was thrown away; empty when it was sound.
        placed: jobs that are ASSIGNED now.
        evicted: attempts that were told to stop.
        deferred: jobs that have a place but were left to the next cycle, to keep this one short.
        refused: jobs whose placement the commit refused, with why; they stay PENDING.
        value, bound, standing, gap: of the plan.
        duration_s: wall time from snapshot to commit.
        solver_s: of it, waiting for the solver.
    """

    waiting: int = 0
    next_eligible_at: UtcSeconds | None = None
    decided: bool = False
    failed: bool = False
    killed: bool = False
    rejected: tuple[Violation, ...] = ()
    decision_id: DecisionId | None = None
    placed: tuple[JobId, ...] = ()
    evicted: tuple[AttemptId, ...] = ()
    deferred: int = 0
    refused: tuple[tuple[JobId, str], ...] = ()
    value: float = 0.0
    bound: float = 0.0
    standing: float = 0.0
    gap: float = 0.0
    duration_s: float = 0.0
    solver_s: float = 0.0


@dataclass(frozen=True, slots=True)
class CycleState:
    """What one cycle leaves to the next.

    Attributes:
        snapshot: the view it decided on.
        stuck: classes of jobs that found no place then. Until capacity appears, one more job of
            such a class finds none either, so its arrival alone needs no decision. None where
            running jobs may be stopped: there a newcomer may be worth somebody's place.
        awaited_at: when the first job that could not start yet may: a backoff ends, or its
            submission lay ahead of a clock that was set back. Whatever wakes the first cycle after
            that instant, it must decide.
    """

    snapshot: Snapshot = field(default_factory=Snapshot)
    stuck: frozenset[str] = frozenset()
    awaited_at: UtcSeconds | None = None


async def run_cycle(
    context: CycleContext, before: CycleState, *, force: bool
) -> tuple[CycleState, CycleReport]:
    """Bring the snapshot up to date, decide on it, and commit what was decided.

    Args:
        context: collaborators and limits.
        before: what the previous cycle ended with.
        force: decide even if nothing changed that could matter (a backoff ended, a refusal).

    Returns:
        What to start the next cycle with, and what was done. Commits at most one decision.

    Raises:
        FencedError: another leader has taken over.
        StorageError: the store cannot write; nothing was decided.
    """
    started_s = context.clock.monotonic_s()
    # 1. Snapshot: only what changed since the last cycle.
    delta = await context.store.load_delta(before.snapshot.revision)
    snapshot = before.snapshot.apply(delta)
    failpoints.hit("cycle-snapshot-read")
    now = context.clock.now()
    stuck = before.stuck if _no_more_room(delta) else frozenset()
    report = _outlook(snapshot, now)
    state = CycleState(snapshot, stuck, report.next_eligible_at)
    turn = before.awaited_at is not None and before.awaited_at <= now
    useful = _could_matter(delta, stuck) or _more_yield(before.snapshot, delta)
    if not snapshot.waiting or not (force or turn or useful):
        await context.solver.feed(delta, lambda: as_full_delta(snapshot))
        return state, report

    # 2. Decide: a pure function of the snapshot, in a process that can be killed.
    asked_s = context.clock.monotonic_s()
    result = await _decide(context, delta, snapshot, now)
    failpoints.hit("cycle-decided")
    decided_s = context.clock.monotonic_s()
    plan = result.plan
    report = replace(report, decided=plan is not None, failed=plan is None, killed=result.killed)
    if plan is None:
        log.warning("no plan this cycle", killed=result.killed)
        return state, report

    # 3. Verify: an independent check; a bad plan is a bug, it is kept and not carried out.
    violations = check_safety(plan, snapshot, now)
    if violations:
        kept = keep(context.rejected_plans, snapshot, plan, violations, now)
        log.error("plan rejected", kept=str(kept), first=violations[0].message)
        return state, replace(report, failed=True, rejected=violations)

    # 4. Commit: the transaction decides, part by part.
    duration_ms = (decided_s - started_s) * 1000
    meta = DecisionMeta(policy=context.profile.name, duration_ms=duration_ms)
    committed = await context.store.commit(plan, meta, context.clock.now())
    return replace(state, stuck=_stuck(context.profile, plan, committed)), replace(
        report,
        decision_id=committed.decision_id,
        placed=committed.placed,
        evicted=committed.evicted,
        deferred=plan.solver.deferred,
        refused=committed.refused,
        value=plan.value,
        bound=plan.bound,
        standing=plan.standing,
        gap=plan.gap,
        duration_s=context.clock.monotonic_s() - started_s,
        solver_s=decided_s - asked_s,
    )


async def _decide(
    context: CycleContext, delta: SnapshotDelta, snapshot: Snapshot, now: UtcSeconds
) -> DecideResult:
    return await context.solver.decide(
        delta,
        lambda: as_full_delta(snapshot),
        policy=context.profile.name,
        effort=context.effort,
        now=now,
        seed=context.seed,
        hard_limit_s=context.hard_limit_s,
    )


def as_full_delta(snapshot: Snapshot) -> SnapshotDelta:
    """The delta that builds `snapshot` from nothing."""
    return SnapshotDelta(
        base_revision=0,
        revision=snapshot.revision,
        nodes=tuple(snapshot.nodes.values()),
        live=tuple(snapshot.live.values()),
        waiting=tuple(snapshot.waiting.values()),
        terms=snapshot.terms,
    )


def _no_more_room(delta: SnapshotDelta) -> bool:
    """Whether room can only have shrunk: our own placements leave less of it, never more.

    Other terms may lift a quota or give headroom back.
    """
    return (
        delta.base_revision > 0
        and delta.terms is None
        and not (delta.nodes or delta.nodes_gone or delta.live_gone)
    )


def _could_matter(delta: SnapshotDelta, stuck: frozenset[str]) -> bool:
    """Whether a decision could use what changed: room, or a shape that found none."""
    return not _no_more_room(delta) or any(job.class_key not in stuck for job in delta.waiting)


def _more_yield(before: Snapshot, delta: SnapshotDelta) -> bool:
    """Whether an attempt may be stopped now that could not before."""
    return any(
        attempt.preemptible
        and attempt.id in before.live
        and not before.live[attempt.id].preemptible
        for attempt in delta.live
    )


def _stuck(profile: Profile, plan: Plan, committed: CommitReport) -> frozenset[str]:
    """Classes that the plan looked at and could not place for want of room."""
    if profile.preemption is not Preemption.NONE:
        return frozenset()
    if committed.refused or plan.solver.skipped or plan.solver.deferred:
        return frozenset()
    return frozenset(
        record.class_key
        for record in plan.waiting
        if any(reason.code in WANT_OF_ROOM for reason in record.reasons)
    )


def _outlook(snapshot: Snapshot, now: UtcSeconds) -> CycleReport:
    """How many wait, and when the next of them may start that may not yet."""
    ahead = (job.eligible_at for job in snapshot.waiting.values() if job.eligible_at > now)
    return CycleReport(waiting=len(snapshot.waiting), next_eligible_at=min(ahead, default=None))
