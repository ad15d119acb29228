"""Gangs that somebody else made and that wait outside for a place, as jobs of origin `kubernetes`.

A gang is known by its key, which a unique index gives to one job (I15). It waits, is decided about,
placed and explained like any other job; what its tasks run is none of our business.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import structlog
from sqlalchemy import Row, Select, bindparam, select, text, update

from scheduler.errors import InvalidRequestError
from scheduler.ids import IdSource
from scheduler.model.job import Origin
from scheduler.model.lifecycle import EndCause, JobEvent, JobState
from scheduler.model.node import Node
from scheduler.model.outside import OutsideGang, OutsideJob
from scheduler.model.quantity import (
    DEFAULT_QUEUE,
    SYSTEM_TENANT,
    JobId,
    NodeId,
    PrincipalId,
    QueueName,
    TenantId,
    UtcSeconds,
)
from scheduler.model.view import JobView
from scheduler.store import documents, identity, inventory, lease
from scheduler.store.attempts import LIVE, stop_jobs
from scheduler.store.jobs import NewJob, add_all, class_key, set_desired_stop
from scheduler.store.tables import allocations, attempts, jobs, queues, tenants
from scheduler.store.transaction import Transaction, Transactions

AnyRow: TypeAlias = Row[*tuple[Any, ...]]

log = structlog.get_logger(__name__)

PRINCIPAL = PrincipalId("kubernetes")
"""Who submits such jobs, in the books; no token speaks for it."""
_CHUNK = 500
_NAME_MAX = 128
_WAITING = frozenset({JobState.PENDING, JobState.HELD, JobState.QUARANTINED})
_ASIDE = frozenset({JobState.HELD, JobState.QUARANTINED})
_LEAVING = frozenset({JobState.STOPPING, JobState.LOST})
_BY_KEY = select(jobs).where(jobs.c.outside_key.in_(bindparam("among", expanding=True)))
_KNOWN = select(jobs.c.outside_key, jobs.c.id).where(
    jobs.c.outside_key.in_(bindparam("among", expanding=True))
)
_LIVE_OF = select(attempts).where(attempts.c.job_id.in_(bindparam("among", expanding=True)), LIVE)
_OPEN = (
    select(jobs.c.outside_key, jobs.c.id, jobs.c.state, jobs.c.document)
    .where(
        jobs.c.state.in_([state.value for state in JobState if not state.terminal]),
        jobs.c.outside_key.is_not(None),
    )
    .order_by(jobs.c.submitted_at, jobs.c.id)
)
_TENANTS = select(tenants.c.id).where(tenants.c.id.in_(bindparam("among", expanding=True)))
_QUEUES = select(queues.c.tenant_id, queues.c.name).where(
    queues.c.tenant_id.in_(bindparam("among", expanding=True))
)
_STATES = select(jobs.c.id, jobs.c.state, jobs.c.message).where(
    jobs.c.id.in_(bindparam("among", expanding=True))
)
_HELD_GPUS = select(allocations.c.gpu_id).where(
    text("live AND gpu_id IS NOT NULL"),  # the very words of the partial index
    allocations.c.gpu_id.in_(bindparam("among", expanding=True)),
)
_SHIELDED = select(jobs.c.id).where(
    jobs.c.shielded.is_(True),
    jobs.c.state.in_([state.value for state in JobState if not state.terminal]),
)
_SET_SHIELD = (
    update(jobs)
    .where(jobs.c.id == bindparam("of"))
    .values(shielded=bindparam("on"), revision=bindparam("at"))
)
_TOUCH_LIVE = (
    update(attempts)
    .where(attempts.c.job_id == bindparam("of"), LIVE)
    .values(revision=bindparam("at"))
)
_FORGET_KEY = update(jobs).where(jobs.c.id == bindparam("of")).values(outside_key=None)


class SqlOutsideStore:
    """The `OutsideStore` port over the database; each call is one transaction.

    Args:
        database: the store.
        epoch: this leader's epoch; what is written under another one is refused.
        ids: for jobs and queues.
    """

    def __init__(self, database: Transactions, epoch: int, ids: IdSource) -> None:
        self._database = database
        self._epoch = epoch
        self._ids = ids

    async def node_ids(self) -> Mapping[str, NodeId]:
        """The nodes that are there, by name: who begins to look finds out which left meanwhile."""
        return await self._database.read(inventory.present_ids)

    async def sync_nodes(
        self, changed: Sequence[Node], gone: Sequence[NodeId], now: UtcSeconds
    ) -> int:
        """Write nodes that changed, and those that are no longer there; how many differed.

        Raises:
            FencedError: another leader has taken over.
        """

        def write(tx: Transaction) -> int:
            lease.require(tx, self._epoch)
            return inventory.sync_changes(tx, beside_held(tx, changed), gone, now=now)

        return await self._database.write(write)

    async def adopt(self, gangs: Sequence[OutsideGang], now: UtcSeconds) -> Mapping[str, JobId]:
        """Put gangs into the queue; the job of each key. See `adopt`.

        Raises:
            FencedError: another leader has taken over.
        """
        return await self._database.write(
            lambda tx: adopt(tx, gangs, epoch=self._epoch, now=now, ids=self._ids)
        )

    async def withdraw(self, keys: Sequence[str], why: str, now: UtcSeconds) -> None:
        """See to it that these gangs do not run, or not again. See `withdraw`.

        Raises:
            FencedError: another leader has taken over.
        """
        await self._database.write(
            lambda tx: withdraw(tx, keys, why, epoch=self._epoch, now=now, ids=self._ids)
        )

    async def shield(self, job_ids: Collection[JobId], now: UtcSeconds) -> None:
        """These of the open gangs must not be stopped for others, for now. See `shield`.

        Raises:
            FencedError: another leader has taken over.
        """
        await self._database.write(lambda tx: shield(tx, job_ids, epoch=self._epoch, now=now))

    async def open_gangs(self) -> Mapping[str, OutsideJob]:
        """Every gang that has not ended, by key, oldest first."""
        return await self._database.read(open_gangs)


def beside_held(tx: Transaction, found: Sequence[Node]) -> list[Node]:
    """The nodes, with what others use counted on GPUs that no live attempt holds.

    Outside, GPUs without an identity of their own are only counted; which of them are the others'
    is ours to say, and where it were one that an attempt holds, it would count once, not twice.
    One statement for each `_CHUNK` of GPUs on nodes that others use.
    """
    used = [gpu.id for node in found if any(g.external for g in node.gpus) for gpu in node.gpus]
    held = {row.gpu_id for row in _among(tx, _HELD_GPUS, used)}
    return [_beside(node, held) for node in found]


def _beside(node: Node, held: Collection[str]) -> Node:
    count = sum(gpu.external for gpu in node.gpus)
    if not any(gpu.external and gpu.id in held for gpu in node.gpus):
        return node
    theirs = {gpu.id for gpu in [gpu for gpu in node.gpus if gpu.id not in held][-count:]}
    marked = tuple(replace(gpu, external=gpu.id in theirs) for gpu in node.gpus)
    return replace(node, gpus=marked)


def set_aside(tx: Transaction, among: Iterable[JobId]) -> dict[JobId, str]:
    """What to tell the pods of those jobs that nobody decides on: they have ended, or are held.

    One statement for each `_CHUNK` of jobs.
    """
    found: dict[JobId, str] = {}
    for row in _among(tx, _STATES, among):
        state = JobState(row.state)
        if not state.terminal and state not in _ASIDE:
            continue
        why = f" ({row.message})" if row.message else ""
        remedy = "; only pods made anew are scheduled" if state.terminal else ""
        found[JobId(row.id)] = f"its job {row.id} is {state}{why}{remedy}"
    return found


def adopt(
    tx: Transaction,
    gangs: Sequence[OutsideGang],
    *,
    epoch: int,
    now: UtcSeconds,
    ids: IdSource,
) -> dict[str, JobId]:
    """Make a waiting job of each gang whose key is not known yet.

    A tenant that is not known is made, with its `default` queue. A gang that names a queue which
    its tenant lacks waits in `default`, and its job's message says so: nobody would read a refusal.
    One that no node could ever run waits too, and the decision's reasons say why.

    Returns:
        The job of each key, also of those that were known.

    Cost: about ten statements, however many gangs, one more for each `_CHUNK` of keys, and two for
    each new tenant.

    Raises:
        FencedError: another leader has taken over.
    """
    lease.require(tx, epoch)
    wanted: dict[str, OutsideGang] = {}
    for gang in gangs:
        wanted.setdefault(gang.key, gang)
    found = {row.outside_key: JobId(row.id) for row in _among(tx, _KNOWN, wanted)}
    fresh = [gang for key, gang in wanted.items() if key not in found]
    known = _queues(tx, {gang.tenant for gang in fresh}, now=now, ids=ids)
    new = [_waiting_job(gang, JobId(ids.new("j")), known, now) for gang in fresh]
    add_all(tx, new, now=now)
    for gang, made in zip(fresh, new, strict=True):
        _audit(tx, "jobs.adopt", made.job.id, gang.tenant, {"members": len(gang.members)}, now)
    return found | {gang.key: made.job.id for gang, made in zip(fresh, new, strict=True)}


def _queues(
    tx: Transaction, wanted: Collection[TenantId], *, now: UtcSeconds, ids: IdSource
) -> frozenset[tuple[str, str]]:
    """Tenant and name of every queue of these tenants; each has its `default` one from now on."""
    known = {row.id for row in _among(tx, _TENANTS, wanted)}
    for tenant in sorted(set(wanted) - known):
        revision = tx.next_revision(
            tenant=tenant, kind="tenant", object_id=tenant, payload={"event": "create"}, at=now
        )
        identity.insert_tenant(tx, tenant, ids.new("q"), now=now, revision=revision)
        _audit(tx, "tenants.create", tenant, SYSTEM_TENANT, {}, now)
    found = {(row.tenant_id, row.name) for row in _among(tx, _QUEUES, wanted)}
    for tenant in sorted(wanted):
        if (tenant, DEFAULT_QUEUE) not in found:  # the tenant of the system has none at first
            identity.insert_default_queue(tx, tenant, ids.new("q"), now=now)
            found.add((tenant, DEFAULT_QUEUE))
    return frozenset(found)


def _waiting_job(
    gang: OutsideGang, job_id: JobId, known: frozenset[tuple[str, str]], now: UtcSeconds
) -> NewJob:
    queue, message = gang.queue, ""
    if (gang.tenant, queue) not in known:
        queue = QueueName(DEFAULT_QUEUE)
        message = f"its tenant has no queue {gang.queue!r}, so it waits in {queue!r}"
    # Made by another clock: what waits must not lie in the future.
    since = min(gang.submitted_at, now)
    job = JobView(
        id=job_id,
        tenant=gang.tenant,
        queue=queue,
        name=gang.name[:_NAME_MAX],
        origin=Origin.KUBERNETES.value,
        principal=PRINCIPAL,
        state=JobState.PENDING,
        desired="run",
        priority=gang.priority,
        shape=gang.shape,
        class_key=class_key(gang.tenant, queue, gang.shape),
        document=documents.of_gang(gang),
        submitted_at=since,
        eligible_at=since,
        started_at=None,
        finished_at=None,
        attempts=0,
        retries_used=0,
        end_cause=None,
        exit_code=None,
        message=message,
        version=1,
        revision=0,
    )
    return NewJob(job, gang.preemptible, documents.API_VERSION, gang.key, gang.evicts)


def withdraw(
    tx: Transaction,
    keys: Sequence[str],
    why: str,
    *,
    epoch: int,
    now: UtcSeconds,
    ids: IdSource,
) -> None:
    """See to it that these gangs do not run, or not again: somebody took them away.

    What was not started ends CANCELLED, and its key is free: a gang that comes back as it was may
    be adopted anew. What was started gets a stop, as some of its members may be left, keeps its key
    and ends as soon as nothing of it is seen. Keys of gangs that have ended or are not known do not
    matter.

    Raises:
        FencedError: another leader has taken over.
    """
    lease.require(tx, epoch)
    found = [row for row in _among(tx, _BY_KEY, keys) if not JobState(row.state).terminal]
    live = {row.job_id: row for row in _among(tx, _LIVE_OF, [row.id for row in found])}
    stopping = [row for row in found if JobState(row.state) not in _LEAVING]
    moved = stop_jobs(
        tx,
        [(row, live.get(row.id)) for row in stopping],
        JobEvent.CANCEL,
        cause=EndCause.CANCELLED,
        now=now,
        ids=ids,
        epoch=epoch,
        desired="stop",
        message=why,
    )
    ended = [{"of": row.id} for row, move in zip(stopping, moved, strict=True) if move.to.terminal]
    if ended:
        tx.connection.execute(_FORGET_KEY, ended)
    for row in found:
        if JobState(row.state) in _LEAVING and row.desired != "stop":
            set_desired_stop(tx, row, now=now)
        _audit(tx, "jobs.withdraw", row.id, row.tenant_id, {"from": row.state, "why": why}, now)


def shield(tx: Transaction, job_ids: Collection[JobId], *, epoch: int, now: UtcSeconds) -> None:
    """Say which gangs must not be stopped for others, for now; all that are not named may.

    It makes no move and no version: it is what the cluster says, not what somebody did to the job.
    Snapshots see it by the revision of the attempt.

    Raises:
        FencedError: another leader has taken over.

    Cost: one statement where nothing changes, three more where something does.
    """
    lease.require(tx, epoch)
    wanted = set(job_ids)
    known = {JobId(row.id) for row in tx.connection.execute(_SHIELDED)}
    changed = sorted(wanted ^ known)
    if not changed:
        return
    revision = tx.next_revision(
        tenant=SYSTEM_TENANT,
        kind="shield",
        object_id="jobs",
        payload={"shielded": len(wanted), "changed": len(changed)},
        at=now,
    )
    rows = [{"of": of, "on": of in wanted, "at": revision} for of in changed]
    tx.connection.execute(_SET_SHIELD, rows)
    tx.connection.execute(_TOUCH_LIVE, rows)


def open_gangs(tx: Transaction) -> dict[str, OutsideJob]:
    """Every gang that has not ended, by key, oldest first. O(jobs that have not ended).

    One whose document this version cannot read is left out: nothing can be said of its members,
    and its job is set aside as soon as it would be placed.
    """
    found: dict[str, OutsideJob] = {}
    for row in tx.connection.execute(_OPEN):
        try:
            members = documents.members_of(row.document)
        except InvalidRequestError as error:
            log.warning("a gang cannot be read", job=row.id, why=str(error))
            continue
        found[row.outside_key] = OutsideJob(
            JobId(row.id), members, waiting=JobState(row.state) in _WAITING
        )
    return found


def _among(tx: Transaction, statement: Select[Any], keys: Iterable[str]) -> list[AnyRow]:
    """Rows of a statement that asks for those `among` some keys, a chunk of them at a time."""
    wanted = sorted(set(keys))
    return [
        row
        for start in range(0, len(wanted), _CHUNK)
        for row in tx.connection.execute(statement, {"among": wanted[start : start + _CHUNK]})
    ]


def _audit(
    tx: Transaction,
    action: str,
    object_id: str,
    tenant: TenantId,
    detail: Mapping[str, object],
    now: UtcSeconds,
) -> None:
    tx.audit(
        tenant=tenant,
        principal=PRINCIPAL,
        action=action,
        object_id=object_id,
        outcome="done",
        detail=detail,
        at=now,
    )
