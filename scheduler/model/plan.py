"""A decision as one complete value: nothing in it is left for the executor to choose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from scheduler.model.quantity import (
    WHOLE_GPU_MILLI,
    AttemptId,
    GpuId,
    JobId,
    NodeId,
    UtcSeconds,
)
from scheduler.model.site import Amounts


@dataclass(frozen=True, slots=True)
class TaskPlacement:
    """Where one task of a gang runs.

    Attributes:
        task_index: 0-based; task order is rank order.
        gpu_ids: exactly the task's GPUs, in the order the task sees them.
        cpu_milli: granted CPU, thousandths of a core.
        memory_mib: granted host memory.
        gpu_milli: thousandths it holds of each of its GPUs; less than 1000 when it shares one.
        extras: granted amounts of further resources.
    """

    task_index: int
    node_id: NodeId
    gpu_ids: tuple[GpuId, ...]
    cpu_milli: int
    memory_mib: int
    gpu_milli: int = WHOLE_GPU_MILLI
    extras: Amounts = ()


@dataclass(frozen=True, slots=True)
class Placement:
    """A whole gang placed: one `TaskPlacement` per task, ordered by task index.

    Attributes:
        value: what the objective gives for starting this gang now.
        why: one sentence for people: which stage placed it and how good its GPUs are.
    """

    job_id: JobId
    tasks: tuple[TaskPlacement, ...]
    value: float
    why: str


@dataclass(frozen=True, slots=True)
class Eviction:
    """A running attempt to stop so that something worth more can start.

    Attributes:
        for_job: the job that profits most of it.
        cost: what the objective pays for it: the victim's value, work lost, and its churn.
    """

    attempt_id: AttemptId
    for_job: JobId
    cost: float


@dataclass(frozen=True, slots=True)
class Reservation:
    """Capacity kept free for a gang that cannot start yet.

    Attributes:
        not_before: when it is expected to be free; the cycle's instant where somebody was just
            told to leave.
        value: what the objective gives for it already; 0 for a mere promise of a start.
    """

    job_id: JobId
    node_ids: tuple[NodeId, ...]
    not_before: UtcSeconds
    value: float = 0.0


class ReasonCode(StrEnum):
    """Why a job waits. Codes are stable: scripts, metrics and conditions rely on them."""

    NEVER_FITS = "never-fits"
    BLOCKED_BY_CONFIG = "blocked-by-config"
    WAITING_CAPACITY = "waiting-capacity"
    FRAGMENTED = "fragmented"
    WAITING_TOPOLOGY = "waiting-topology"
    WAITING_GANG = "waiting-gang"
    WAITING_QUOTA = "waiting-quota"
    RESERVED_HEADROOM = "reserved-headroom"
    BEHIND_PRIORITY = "behind-priority"
    HELD = "held"
    BACKOFF = "backoff"
    QUARANTINED = "quarantined"
    PENDING_EVALUATION = "pending-evaluation"


REMEDIES: Final[Mapping[ReasonCode, str]] = MappingProxyType(
    {
        ReasonCode.NEVER_FITS: "ask for less or for other labels, or add nodes",
        ReasonCode.BLOCKED_BY_CONFIG: "uncordon, repair, remove the taint or tolerate it",
        ReasonCode.WAITING_CAPACITY: "wait, or free some",
        ReasonCode.FRAGMENTED: "wait; smaller tasks fit sooner",
        ReasonCode.WAITING_TOPOLOGY: "wait, or use the `prefer-` form",
        ReasonCode.WAITING_GANG: "wait, or ask for fewer tasks",
        ReasonCode.WAITING_QUOTA: "wait until own jobs end, or raise the quota",
        ReasonCode.RESERVED_HEADROOM: "wait, or lower the headroom",
        ReasonCode.BEHIND_PRIORITY: "wait, or raise the priority",
        ReasonCode.HELD: "`haversack release JOB`",
        ReasonCode.BACKOFF: "wait",
        ReasonCode.QUARANTINED: "look at its attempts, then `haversack release JOB`",
        ReasonCode.PENDING_EVALUATION: "moments",
    }
)
"""What helps, for people; docs/reference/reasons.md says the same."""


@dataclass(frozen=True, slots=True)
class Reason:
    """One reason, with its numbers.

    Attributes:
        message: a sentence that names the limiting quantity.
        dimension: `gpus`, `cpu_milli`, `memory_mib`, `nodes`, the name of a further resource, or
            "" when none applies.
        need: amount the whole gang asks of that dimension.
        free: amount free on the nodes that pass every filter before this reason.
        largest_block: the most of it free in one piece (one node, or one NVLink domain).
    """

    code: ReasonCode
    message: str
    dimension: str = ""
    need: float = 0
    free: float = 0
    largest_block: float = 0


@dataclass(frozen=True, slots=True)
class FunnelStep:
    """How many nodes are left after one more filter."""

    filter: str
    nodes_left: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """The reason record of one equivalence class of waiting jobs (tenant, queue, shape).

    Attributes:
        reasons: all that apply, the limiting one first; never empty.
        funnel: nodes left after each filter, in filter order.
    """

    class_key: str
    reasons: tuple[Reason, ...]
    funnel: tuple[FunnelStep, ...] = ()


@dataclass(frozen=True, slots=True)
class SolverReport:
    """How the plan was found. Deterministic: no wall time in it.

    Attributes:
        stage: `empty`, `greedy`, `lp`, `milp`: which candidate won.
        greedy_value: objective of the greedy incumbent.
        columns: columns of the largest model built; 0 when none was.
        nodes_explored: branch-and-bound nodes.
        proved: whether the bound came from an exact model (else from its LP relaxation).
        skipped: eligible jobs beyond the effort's `order_max`: neither looked at nor bounded.
        deferred: jobs that have a place but start in the next cycle, to keep this one short.
        notes: what went wrong on the way, if anything (a refused solver answer, a limit).
    """

    stage: str
    greedy_value: float
    columns: int = 0
    nodes_explored: int = 0
    proved: bool = False
    skipped: int = 0
    deferred: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything one cycle decided, from one snapshot.

    Attributes:
        snapshot_revision: the journal revision the snapshot stood at.
        value: objective: the values of placements and reservations less the evictions' costs.
        bound: proven upper bound of the objective over all plans for this snapshot.
        standing: what the running jobs are worth that this decision might have stopped; 0 where
            none might be.
        waiting: one record per class of jobs left waiting.
    """

    snapshot_revision: int
    placements: tuple[Placement, ...] = ()
    evictions: tuple[Eviction, ...] = ()
    reservations: tuple[Reservation, ...] = ()
    waiting: tuple[Waiting, ...] = ()
    value: float = 0.0
    bound: float = 0.0
    standing: float = 0.0
    solver: SolverReport = field(default_factory=lambda: SolverReport("empty", 0.0))

    @property
    def gap(self) -> float:
        """Proven relative distance to the optimum; see `relative_gap`."""
        return relative_gap(self.value, self.bound, self.standing)


def relative_gap(value: float, bound: float, standing: float) -> float:
    """(bound - value) / (bound + standing); 0 when nothing could be won.

    A decision that may stop running jobs decides on all that will run, so what it leaves running
    counts: leaving things as they are is worth `standing`, and the best is worth at most that and
    `bound` more.
    """
    return max(0.0, (bound - value) / (bound + standing)) if bound > 0 else 0.0
