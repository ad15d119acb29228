"""Why a job stands where it stands, in a sentence and in reasons with numbers."""

from __future__ import annotations

from collections.abc import Callable

from scheduler.clock import iso
from scheduler.errors import NotFoundError
from scheduler.model.access import Actor, Permission
from scheduler.model.lifecycle import EndCause, JobState
from scheduler.model.plan import Reason, ReasonCode
from scheduler.model.quantity import JobId, UtcSeconds
from scheduler.model.view import AttemptView, Explanation, JobView
from scheduler.service import access
from scheduler.store import cluster, jobs
from scheduler.store.decisions import StoredReasons, reasons_of
from scheduler.store.documents import priority_class_of
from scheduler.store.execution import launch_note
from scheduler.store.transaction import Transaction

_NODES_NAMED = 4


def explain(tx: Transaction, actor: Actor, job_id: JobId, *, now: UtcSeconds) -> Explanation:
    """All that is known of why the job waits, or where it runs, or how it ended.

    A waiting job gets the stored reasons of its class of equal jobs; until a decision has looked
    at the class the one reason is `pending-evaluation`.

    Raises:
        ForbiddenError: the role does not grant it.
        NotFoundError: no such job for this actor.

    Cost: a few look-ups; for a PENDING job one count over the waiting jobs.
    """
    access.require(actor, Permission.JOBS_READ)
    job = jobs.view(tx, access.job_row(tx, actor, job_id))
    if job.state is JobState.PENDING:
        return _explain_pending(tx, job, now)
    if job.state in (JobState.HELD, JobState.QUARANTINED):
        reason = _aside(job)
        return _explanation(job, reason.message, (reason,))
    attempts = jobs.attempt_list(tx, job.id)
    summary = _ended(job) if job.state.terminal else _underway(tx, job, attempts[-1], now)
    return _explanation(job, summary, ())


def explain_pod(
    actor: Actor, namespace: str, name: str, *, waits: Callable[[str, str], str]
) -> str:
    """Why a pod that names us is in no job.

    Args:
        actor: who asks.
        namespace: the pod's, which is its tenant.
        name: the pod's.
        waits: why a pod waits outside every job; "" if nothing is known of it.

    Raises:
        ForbiddenError: the role does not grant it.
        NotFoundError: no such pod for this actor.
    """
    access.require(actor, Permission.JOBS_READ)
    may_know = actor.cluster_wide or actor.tenant == namespace
    why = waits(namespace, name) if may_know else ""
    if not why:
        raise NotFoundError(
            f"no pod {namespace}/{name} waits outside every job",
            hint="one that is in a job is found by `GET /api/v1/jobs?pod=NAMESPACE/NAME`",
        )
    return why


def _explanation(
    job: JobView,
    summary: str,
    reasons: tuple[Reason, ...],
    *,
    ahead: int = 0,
    stored: StoredReasons | None = None,
) -> Explanation:
    return Explanation(
        job_id=job.id,
        state=job.state,
        summary=summary,
        reasons=reasons,
        funnel=() if stored is None else stored.waiting.funnel,
        ahead=ahead,
        decision_id=None if stored is None else stored.decision_id,
        gap=None if stored is None else stored.gap,
        evaluated_at=None if stored is None else stored.at,
    )


def _explain_pending(tx: Transaction, job: JobView, now: UtcSeconds) -> Explanation:
    stored = reasons_of(tx, job.class_key)
    reasons: list[Reason] = []
    if job.eligible_at > now:
        reasons.append(
            Reason(
                ReasonCode.BACKOFF,
                f"it may not start again before {iso(job.eligible_at)}, "
                f"in {job.eligible_at - now:.0f} s, after attempt {job.attempts}",
            )
        )
    if stored is not None:
        reasons.extend(stored.waiting.reasons)
    elif not reasons:
        reasons.append(
            Reason(
                ReasonCode.PENDING_EVALUATION,
                "no decision has looked at it yet; the next cycle will",
            )
        )
    ahead = jobs.ahead(tx, job)
    queue = "no job is" if ahead == 0 else "1 job is" if ahead == 1 else f"{ahead} jobs are"
    summary = f"It waits: {reasons[0].message}; {queue} ahead of it{_by_class(job)}."
    return _explanation(job, summary, tuple(reasons), ahead=ahead, stored=stored)


def _by_class(job: JobView) -> str:
    """Its priority, where a class with a name gave it."""
    name = priority_class_of(job.document)
    return f" at priority {job.priority}, by the PriorityClass {name}" if name else ""


def _aside(job: JobView) -> Reason:
    if job.state is JobState.HELD:
        told = f" ({job.message})" if job.message else ""
        return Reason(ReasonCode.HELD, f"It is held{told} until somebody releases it.")
    told = f": {job.message}" if job.message else ""
    after = f" after attempt {job.attempts}" if job.attempts else ""
    return Reason(
        ReasonCode.QUARANTINED, f"It was set aside{after}{told}; release it to try again."
    )


def _where(tx: Transaction, attempt: AttemptView) -> str:
    """For example `2 tasks with 4 GPUs on node-1, node-2`."""
    names = cluster.node_names(tx, frozenset(task.node_id for task in attempt.tasks))
    used = sorted({names.get(task.node_id, task.node_id) for task in attempt.tasks})
    more = f" and {len(used) - _NODES_NAMED} more nodes" if len(used) > _NODES_NAMED else ""
    gpus = sum(len(task.gpu_ids) for task in attempt.tasks)
    tasks = _counted(len(attempt.tasks), "task")
    with_gpus = f" with {_counted(gpus, 'GPU')}" if gpus else ""
    return f"{tasks}{with_gpus} on {', '.join(used[:_NODES_NAMED])}{more}"


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _underway(tx: Transaction, job: JobView, attempt: AttemptView, now: UtcSeconds) -> str:
    note = launch_note(tx, attempt.id)
    where = f"attempt {attempt.number}, {_where(tx, attempt)}" + (f" ({note})" if note else "")
    match job.state:
        case JobState.ASSIGNED:
            return f"It has its place and is about to start: {where}."
        case JobState.LAUNCHING:
            return f"It is starting: {where}."
        case JobState.RUNNING:
            since = attempt.created_at if attempt.started_at is None else attempt.started_at
            return f"It has been running for {max(0.0, now - since):.0f} s: {where}."
        case JobState.STOPPING:
            told = f" ({job.message})" if job.message else ""
            ends = "cancelled" if job.desired == "stop" else "stopped"
            return f"It is being {ends}{told}: {where}."
        case _:
            return (
                f"Nothing is heard of it: {where}; its resources stay taken until it is proved "
                "dead or answers again."
            )


_CAUSES = {
    EndCause.USER: "its own program failed",
    EndCause.INFRASTRUCTURE: "the infrastructure failed too often",
    EndCause.LOST: "it was lost",
    EndCause.TIMED_OUT: "it ran longer than max_runtime_s",
    EndCause.PREEMPTED: "it was preempted",
}


def _ended(job: JobView) -> str:
    code = "" if job.exit_code is None else f" with exit code {job.exit_code}"
    told = f" ({job.message})" if job.message else ""
    attempts = _counted(job.attempts, "attempt")
    match job.state:
        case JobState.SUCCEEDED:
            return f"It succeeded{code} in {attempts}."
        case JobState.CANCELLED:
            began = f"after {attempts}" if job.attempts else "before it started"
            return f"It was cancelled {began}{code}{told}."
        case _:
            cause = _CAUSES.get(job.end_cause) if job.end_cause is not None else None
            because = f": {cause}" if cause else ""
            return f"It failed{code} after {attempts}{because}{told}."
