"""What use cases answer with: read-only views of stored objects, ready to be rendered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from scheduler.model.execution import RankExit
from scheduler.model.job import JobShape
from scheduler.model.lifecycle import EndCause, JobState
from scheduler.model.node import Node
from scheduler.model.plan import FunnelStep, Reason, TaskPlacement
from scheduler.model.quantity import (
    AttemptId,
    DecisionId,
    GpuId,
    JobId,
    NodeId,
    PrincipalId,
    QueueName,
    TenantId,
    UtcSeconds,
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a listing; `next_cursor` is None on the last."""

    items: tuple[T, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class AttemptView:
    """One attempt of a job. `tasks` says where each task runs or ran."""

    id: AttemptId
    number: int
    live: bool
    decision_id: DecisionId
    tasks: tuple[TaskPlacement, ...]
    why: str
    created_at: UtcSeconds
    started_at: UtcSeconds | None
    ended_at: UtcSeconds | None
    end_cause: EndCause | None
    exit: RankExit | None
    message: str


@dataclass(frozen=True, slots=True)
class JobView:
    """A job as its owner sees it.

    Attributes:
        document: the job as submitted, JSON text.
        version: rises with every change; the ETag.
        eligible_at: when a PENDING job may start at the earliest (backoff).
    """

    id: JobId
    tenant: TenantId
    queue: QueueName
    name: str
    origin: str
    principal: PrincipalId
    state: JobState
    desired: str
    priority: int
    shape: JobShape
    class_key: str
    document: str
    submitted_at: UtcSeconds
    eligible_at: UtcSeconds
    started_at: UtcSeconds | None
    finished_at: UtcSeconds | None
    attempts: int
    retries_used: int
    end_cause: EndCause | None
    exit_code: int | None
    message: str
    version: int
    revision: int
    simulated: bool = False
    """Whether its current or last attempt sits on simulated nodes."""


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One move of a job."""

    seq: int
    at: UtcSeconds
    from_state: JobState | None
    to_state: JobState
    event: str
    attempt_id: AttemptId | None
    detail: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class SubmitResult:
    """`replayed` is True when the idempotency key had already made this job."""

    job: JobView
    replayed: bool


@dataclass(frozen=True, slots=True)
class JobFilter:
    """What `list_jobs` selects; None means any. `sort` is one of SORTS, `-` prefix descends.

    Attributes:
        pod: `namespace/name` of a pod: the jobs that have or had it.
    """

    states: tuple[JobState, ...] = ()
    queue: str | None = None
    name: str | None = None
    tenant: TenantId | None = None
    pod: str | None = None
    sort: str = "-submitted_at"


SORTS = ("submitted_at", "-submitted_at", "priority", "-priority", "name", "-name")


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a job stands where it stands.

    Attributes:
        reasons: all that apply now, the limiting one first; empty unless it waits.
        ahead: waiting jobs that the queue order puts before it (same or higher claim).
        decision_id: the decision these reasons come from; None before the first.
        gap: proven gap of that decision.
        evaluated_at: when that decision was made.
    """

    job_id: JobId
    state: JobState
    summary: str
    reasons: tuple[Reason, ...]
    funnel: tuple[FunnelStep, ...]
    ahead: int
    decision_id: DecisionId | None
    gap: float | None
    evaluated_at: UtcSeconds | None


@dataclass(frozen=True, slots=True)
class GpuView:
    """A GPU and who holds it.

    Attributes:
        job_id, job_name: the holder, if the reader may know of it.
        in_use: whether anyone holds it, named or not.
    """

    id: GpuId
    node_id: NodeId
    node_name: str
    index: int
    model: str
    memory_mib: int
    health: str
    cordoned: bool
    simulated: bool
    job_id: JobId | None
    job_name: str | None
    version: int
    in_use: bool = False


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node, what is used of it, and its version (the ETag)."""

    node: Node
    cpu_milli_used: int
    memory_mib_used: int
    gpus_used: int
    seen_at: UtcSeconds
    version: int


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One committed change; `revision` is the SSE id."""

    revision: int
    tenant: TenantId
    at: UtcSeconds
    kind: str
    object_id: str
    payload: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class DecisionView:
    """One committed decision. `document` is its JSON: solver report, placements, refusals."""

    id: DecisionId
    at: UtcSeconds
    epoch: int
    snapshot_revision: int
    value: float
    bound: float
    gap: float
    placed: int
    refused: int
    waiting_classes: int
    policy: str
    duration_ms: float
    document: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class TokenView:
    """A token without its secret."""

    id: str
    tenant: TenantId
    principal: PrincipalId
    principal_name: str
    role: str
    description: str
    created_at: UtcSeconds
    expires_at: UtcSeconds | None
    revoked_at: UtcSeconds | None


@dataclass(frozen=True, slots=True)
class TenantView:
    """A tenant."""

    id: TenantId
    name: str
    created_at: UtcSeconds


@dataclass(frozen=True, slots=True)
class QueueView:
    """A queue with its counts of jobs by state."""

    name: QueueName
    tenant: TenantId
    weight: float
    waiting: int
    running: int
    held: int


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One audited request."""

    id: int
    at: UtcSeconds
    tenant: TenantId
    principal: str
    action: str
    object_id: str
    outcome: str
    detail: Mapping[str, object]
