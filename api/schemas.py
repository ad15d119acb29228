"""Wire types: what a response holds; `api.render` makes them from views.

They are TypedDicts, so that rendering, the typed client and OpenAPI share one definition, and a
response costs no validation. Instants are RFC 3339 text, UTC; units are in the names.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from typing_extensions import TypedDict  # pydantic refuses typing.TypedDict before Python 3.12

W = TypeVar("W")


class PageOut(TypedDict, Generic[W]):
    """One page of a listing; `next_cursor` is null on the last."""

    items: list[W]
    next_cursor: str | None


class ListOut(TypedDict, Generic[W]):
    """A whole listing."""

    items: list[W]


class TaskOut(TypedDict):
    """Where one task runs; `gpu_ids` in the order the task sees them."""

    task_index: int
    node_id: str
    gpu_ids: list[str]
    cpu_milli: int
    memory_mib: int


class ExitOut(TypedDict):
    """How the rank that ended the gang ended."""

    rank: int
    exit_code: int | None
    signal: int | None


class AttemptOut(TypedDict):
    """One attempt of a job."""

    id: str
    number: int
    live: bool
    decision_id: str
    tasks: list[TaskOut]
    why: str
    created_at: str
    started_at: str | None
    ended_at: str | None
    end_cause: str | None
    exit: ExitOut | None
    message: str


class JobOut(TypedDict):
    """A job. `gpus` is the whole gang's; `version` is the ETag."""

    id: str
    tenant: str
    queue: str
    name: str
    origin: str
    principal: str
    state: str
    desired: str
    priority: int
    tasks: int
    gpus: int
    gpus_per_task: int
    cpu_milli_per_task: int
    memory_mib_per_task: int
    gpu_models: list[str]
    topology: str
    pool: str | None
    class_key: str
    submitted_at: str
    eligible_at: str
    started_at: str | None
    finished_at: str | None
    attempt_count: int
    retries_used: int
    end_cause: str | None
    exit_code: int | None
    message: str
    simulated: bool
    version: int
    revision: int


class JobDetailOut(JobOut):
    """A job with its attempts, newest last, and the document as submitted."""

    attempts: list[AttemptOut]
    document: dict[str, object]


class SubmittedOut(JobOut):
    """Answer to a submission.

    `replayed`: the idempotency key had made this job before; `dry_run`: nothing was stored.
    """

    replayed: bool
    dry_run: bool


class HistoryOut(TypedDict):
    """One move of a job."""

    seq: int
    at: str
    from_state: str | None
    to_state: str
    event: str
    attempt_id: str | None
    detail: dict[str, object]


class ReasonOut(TypedDict):
    """One reason why a job waits, with its numbers, and what helps."""

    code: str
    message: str
    dimension: str
    need: float
    free: float
    largest_block: float
    remedy: str


class FunnelOut(TypedDict):
    """How many nodes are left after one more filter."""

    filter: str
    nodes_left: int


class ExplanationOut(TypedDict):
    """Why a job stands where it stands; `reasons` has the limiting one first."""

    job_id: str
    state: str
    summary: str
    reasons: list[ReasonOut]
    funnel: list[FunnelOut]
    ahead: int
    decision_id: str | None
    gap: float | None
    evaluated_at: str | None


class PodOut(TypedDict):
    """A pod that waits outside every job, and why."""

    namespace: str
    name: str
    reason: str


class LogOut(TypedDict):
    """A piece of one rank's log. Offsets count bytes of the stream, not characters."""

    rank: int
    attempt: int
    offset: int
    next_offset: int
    end: bool
    data: str


class LogsOut(TypedDict):
    """A piece of every rank's log (`rank=all`)."""

    attempt: int | None
    chunks: list[LogOut]


class GpuOut(TypedDict):
    """A GPU and who holds it; job id and name are null where the holder is another tenant's."""

    id: str
    node_id: str
    node_name: str
    index: int
    model: str
    memory_mib: int
    health: str
    cordoned: bool
    simulated: bool
    in_use: bool
    job_id: str | None
    job_name: str | None
    version: int


class NodeOut(TypedDict):
    """A node and what is used of it."""

    id: str
    name: str
    pool: str
    price_class: str
    rack: str
    zone: str
    health: str
    cordoned: bool
    simulated: bool
    gpus: int
    gpus_used: int
    gpu_models: list[str]
    cpu_milli: int
    cpu_milli_used: int
    memory_mib: int
    memory_mib_used: int
    seen_at: str
    version: int


class QueueOut(TypedDict):
    """A queue with its counts."""

    name: str
    tenant: str
    weight: float
    waiting: int
    running: int
    held: int


class DecisionOut(TypedDict):
    """What one cycle decided: value, proven bound, and the gap between them."""

    id: str
    at: str
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


class DecisionDetailOut(DecisionOut):
    """A decision with its document: solver report, placements, refusals."""

    document: dict[str, object]


class EventOut(TypedDict):
    """One committed change; `revision` is the event id."""

    revision: int
    tenant: str
    at: str
    kind: str
    object_id: str
    payload: dict[str, object]


class TokenOut(TypedDict):
    """A token without its secret."""

    id: str
    tenant: str
    principal: str
    principal_name: str
    role: str
    description: str
    created_at: str
    expires_at: str | None
    revoked_at: str | None


class NewTokenOut(TokenOut):
    """A fresh token; the only time that its text is shown."""

    token: str


class TenantOut(TypedDict):
    """A tenant."""

    id: str
    name: str
    created_at: str


class AuditOut(TypedDict):
    """One audited request."""

    id: int
    at: str
    tenant: str
    principal: str
    action: str
    object_id: str
    outcome: str
    detail: dict[str, object]


class SessionOut(TypedDict):
    """A one-time link that opens the dashboard in a browser."""

    login_url: str
    expires_in_s: int


class HealthOut(TypedDict):
    """The process answers."""

    status: str
    version: str


class ReadyOut(TypedDict):
    """Whether every part works; `troubles` names those that do not.

    `role` is `leader`, or `standby` for a replica that would take over. `warnings` names what works
    but lacks a safeguard.
    """

    ready: bool
    role: str
    troubles: dict[str, str]
    warnings: dict[str, str]


class FieldProblemOut(TypedDict):
    """One thing wrong with a document; absent facts are null."""

    path: str
    message: str
    line: int | None
    column: int | None
    suggestion: str | None


class _ProblemBase(TypedDict):
    type: str
    title: str
    status: int
    detail: str
    code: str
    hint: str
    request_id: str


class ProblemOut(_ProblemBase, total=False):
    """RFC 9457 problem; `problems` for field errors, `dimension` for infeasible requests."""

    problems: list[FieldProblemOut]
    dimension: str
