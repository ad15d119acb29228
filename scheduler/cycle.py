"""One scheduling cycle, on one screen: snapshot, decide, verify, commit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from scheduler import failpoints
from scheduler.allocation.verify import Violation, verify
from scheduler.clock import Clock
from scheduler.ids import IdSource
from scheduler.model.plan import Plan
from scheduler.model.ports import Effort, QueueOrder
from scheduler.model.quantity import DecisionId, JobId, UtcSeconds
from scheduler.model.snapshot import Snapshot, SnapshotDelta
from scheduler.rejected_plans import keep
from scheduler.solver_process import SolverProcess
from scheduler.store.database import Database
from scheduler.store.plans import CommitReport, DecisionMeta, commit_plan
from scheduler.store.snapshot import load_delta

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class CycleContext:
    """What a cycle works with; built once by the composition root.

    Attributes:
        epoch: the leader epoch this process holds; a commit under another one is refused.
        hard_limit_s: wall time after which the solver process is killed.
        rejected_plans: folder where plans that failed verification are kept for replay.
    """

    database: Database
    solver: SolverProcess
    order: QueueOrder
    effort: Effort
    seed: int
    hard_limit_s: float
    epoch: int
    clock: Clock
    ids: IdSource
    rejected_plans: Path


@dataclass(frozen=True, slots=True)
class CycleReport:
    """What one cycle did.

    Attributes:
        decided: False when nothing had changed that a new decision could use.
        placed: jobs that are ASSIGNED now.
        refused: jobs whose placement the commit refused, with why; they stay PENDING.
        failed: the solver gave no plan at all; the next cycle must try again.
        killed: the solver process had to be killed; the plan is what it had sent by then.
        rejected: violations of a plan that was thrown away; empty when it was sound.
        next_eligible_at: when the first job in backoff may start; None without one.
    """

    decided: bool
    decision_id: DecisionId | None = None
    placed: tuple[JobId, ...] = ()
    refused: tuple[tuple[JobId, str], ...] = ()
    waiting: int = 0
    value: float = 0.0
    bound: float = 0.0
    gap: float = 0.0
    duration_s: float = 0.0
    failed: bool = False
    killed: bool = False
    rejected: tuple[Violation, ...] = ()
    next_eligible_at: UtcSeconds | None = None


async def run_cycle(
    context: CycleContext, before: Snapshot, *, force: bool
) -> tuple[Snapshot, CycleReport]:
    """Bring the snapshot up to date, decide on it, and commit what was decided.

    Args:
        context: collaborators and limits.
        before: the snapshot the previous cycle ended with.
        force: decide even if nothing changed that could matter (a backoff ended, a refusal).

    Returns:
        The new snapshot and what was done. Commits at most one decision.

    Raises:
        FencedError: another leader has taken over.
        StorageError: the store cannot write; nothing was decided.
    """
    started_s = context.clock.monotonic_s()
    # 1. Snapshot: only what changed since the last cycle.
    delta = await context.database.read(lambda tx: load_delta(tx, before.revision))
    snapshot = before.apply(delta)
    failpoints.hit("cycle-snapshot-read")
    now = context.clock.now()
    eligible_at = _next_eligible(snapshot, now)
    if not (force or _could_matter(delta)) or not snapshot.waiting:
        await context.solver.feed(delta, lambda: as_full_delta(snapshot))
        return snapshot, CycleReport(
            decided=False, waiting=len(snapshot.waiting), next_eligible_at=eligible_at
        )

    # 2. Decide: a pure function of the snapshot, in a process that can be killed.
    result = await context.solver.decide(
        delta,
        lambda: as_full_delta(snapshot),
        policy=context.order.name,
        effort=context.effort,
        now=now,
        seed=context.seed,
        hard_limit_s=context.hard_limit_s,
    )
    failpoints.hit("cycle-decided")
    decide_s = context.clock.monotonic_s() - started_s
    plan = result.plan
    if plan is None:
        log.warning("no plan this cycle", killed=result.killed)
        return snapshot, CycleReport(
            decided=False, failed=True, killed=result.killed, next_eligible_at=eligible_at
        )

    # 3. Verify: an independent check; a bad plan is a bug, it is kept and not carried out.
    violations = verify(plan, snapshot, context.order.order(tuple(snapshot.waiting.values()), now))
    if violations:
        kept = keep(context.rejected_plans, snapshot, plan, violations, now)
        log.error("plan rejected", kept=str(kept), first=violations[0].message)
        return snapshot, CycleReport(
            decided=False, rejected=violations, next_eligible_at=eligible_at
        )

    # 4. Commit: the transaction decides, part by part.
    committed = await _commit(context, plan, decide_s)
    return snapshot, CycleReport(
        decided=True,
        decision_id=committed.decision_id,
        placed=committed.placed,
        refused=committed.refused,
        waiting=len(snapshot.waiting) - len(committed.placed),
        value=plan.value,
        bound=plan.bound,
        gap=plan.gap,
        duration_s=context.clock.monotonic_s() - started_s,
        killed=result.killed,
        next_eligible_at=eligible_at,
    )


async def _commit(context: CycleContext, plan: Plan, decide_s: float) -> CommitReport:
    meta = DecisionMeta(policy=context.order.name, duration_ms=decide_s * 1000)
    now = context.clock.now()
    return await context.database.write(
        lambda tx: commit_plan(
            tx, plan, epoch=context.epoch, decision=meta, now=now, ids=context.ids
        ),
        failpoint="plan",
    )


def as_full_delta(snapshot: Snapshot) -> SnapshotDelta:
    """The delta that builds `snapshot` from nothing."""
    return SnapshotDelta(
        base_revision=0,
        revision=snapshot.revision,
        nodes=tuple(snapshot.nodes.values()),
        live=tuple(snapshot.live.values()),
        waiting=tuple(snapshot.waiting.values()),
    )


def _could_matter(delta: SnapshotDelta) -> bool:
    """Whether a decision could use what changed: capacity appeared, or somebody new waits.

    Our own placements (waiting_gone, live) leave less room, never more.
    """
    return bool(delta.nodes or delta.nodes_gone or delta.live_gone or delta.waiting)


def _next_eligible(snapshot: Snapshot, now: UtcSeconds) -> UtcSeconds | None:
    return min(
        (job.eligible_at for job in snapshot.waiting.values() if job.eligible_at > now),
        default=None,
    )


CycleListener = Callable[[CycleReport], None]
