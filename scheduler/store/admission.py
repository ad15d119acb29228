"""What `submit` has to know before it accepts a job, at a price that 300 jobs a second can pay.

Counting waiting jobs and reading nodes is O(size of the cluster), so both are remembered with the
database connection that read them (which for writers is one connection) and checked against
something cheap: nodes against their highest revision, the count by only ever rising until it
reaches the bound.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sqlalchemy import bindparam, func, select

from scheduler.model.feasible import never_fits
from scheduler.model.job import JobShape
from scheduler.model.lifecycle import JobState
from scheduler.model.plan import Reason
from scheduler.model.quantity import QueueName, TenantId, UtcSeconds
from scheduler.store import cluster
from scheduler.store.tables import jobs, nodes, queues
from scheduler.store.transaction import Transaction

FULL_S = 1.0
"""A full tenant is counted again after this long."""
_RECOUNT_S = 30.0
"""Other processes submit too, and jobs come back for retries: count again after this long."""
_SHAPES_MAX = 1_024

_FACTS = select(
    select(func.count())
    .select_from(queues)
    .where(queues.c.tenant_id == bindparam("tenant"), queues.c.name == bindparam("queue"))
    .scalar_subquery()
    .label("queue_known"),
    select(func.max(nodes.c.revision)).scalar_subquery().label("nodes_revision"),
)
_WAITING = select(func.count()).select_from(
    select(jobs.c.id)
    .where(jobs.c.state == JobState.PENDING, jobs.c.tenant_id == bindparam("tenant"))
    .limit(bindparam("at_most"))
    .subquery()
)


@dataclass(slots=True)
class _Count:
    """An upper bound of a tenant's waiting jobs, exact until one enters."""

    jobs: int
    taken_at: UtcSeconds
    exact: bool


@dataclass(slots=True)
class _Memory:
    """What one connection remembers between submissions."""

    counts: dict[TenantId, _Count] = field(default_factory=dict)
    nodes_revision: int | None = None
    verdicts: dict[JobShape, Reason | None] = field(default_factory=dict)


def _memory(tx: Transaction) -> _Memory:
    memory = tx.connection.info.setdefault("haversack-admission", _Memory())
    assert isinstance(memory, _Memory)
    return memory


@dataclass(frozen=True, slots=True)
class Facts:
    """What decides whether a job may enter.

    Attributes:
        queue_known: whether the tenant has the queue.
        never_fits: why no cluster of the present nodes could run it, or None.
    """

    queue_known: bool
    never_fits: Reason | None


def facts(tx: Transaction, tenant: TenantId, queue: QueueName, shape: JobShape) -> Facts:
    """Read what decides about a job of this shape.

    Cost: one statement of two index look-ups; nodes are read again only after one has changed, a
    shape is judged once for each state of the nodes.
    """
    found = tx.connection.execute(_FACTS, {"tenant": tenant, "queue": queue}).one()
    memory = _memory(tx)
    if memory.nodes_revision != found.nodes_revision or len(memory.verdicts) >= _SHAPES_MAX:
        memory.verdicts.clear()
        memory.nodes_revision = found.nodes_revision
    if shape not in memory.verdicts:
        memory.verdicts[shape] = never_fits(shape, cluster.present_nodes(tx))
    return Facts(bool(found.queue_known), memory.verdicts[shape])


def room(tx: Transaction, tenant: TenantId, most: int, *, now: UtcSeconds) -> int:
    """How many more waiting jobs the tenant may have; never too many within one process.

    The remembered count only rises. Jobs that come back to the queue or enter through other
    processes are seen at the next count, at most 30 s later. A full tenant stays full for up to a
    second after it drained.

    Cost: O(1); one count of the waiting jobs, O(`most`), when the bound is reached, at most once
    a second for a tenant that stays full.
    """
    counts = _memory(tx).counts
    known = counts.get(tenant)
    if known is not None:
        age_s = abs(now - known.taken_at)
        full = known.jobs >= most
        if age_s >= _RECOUNT_S or (full and age_s >= FULL_S) or (full and not known.exact):
            known = None
    if known is None:
        counted = tx.connection.execute(_WAITING, {"tenant": tenant, "at_most": most}).scalar_one()
        known = counts[tenant] = _Count(counted, now, exact=True)
    return max(0, most - known.jobs)


def enter(tx: Transaction, tenant: TenantId) -> None:
    """Count one more waiting job; `room` was asked before in this transaction."""
    known = _memory(tx).counts[tenant]
    known.jobs += 1
    known.exact = False
