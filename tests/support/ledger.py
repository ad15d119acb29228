"""Checks of the whole store after the fact: what the books must say when all jobs have ended."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import sqlalchemy as sa

from scheduler.model.lifecycle import TABLE, JobEvent, JobState
from scheduler.store import tables as t


def violations(connection: sa.Connection) -> list[str]:
    """Everything in the store that contradicts the invariants; empty when it is sound."""
    return [
        *_histories(connection),
        *_overlapping_allocations(connection),
        *_node_sums(connection),
        *_live_attempts(connection),
        *_journal(connection),
    ]


def leaks(connection: sa.Connection) -> list[str]:
    """Allocations and attempts still live although their job is terminal."""
    rows = connection.execute(
        sa.select(t.attempts.c.id, t.jobs.c.state)
        .join(t.jobs, t.jobs.c.id == t.attempts.c.job_id)
        .where(t.attempts.c.live)
        .where(t.jobs.c.state.in_(["SUCCEEDED", "FAILED", "CANCELLED"]))
    )
    return [f"attempt {row.id} is live though its job is {row.state}" for row in rows]


def _histories(connection: sa.Connection) -> list[str]:
    found: list[str] = []
    states: dict[str, JobState | None] = {}
    counts: dict[str, int] = {}
    rows = connection.execute(sa.select(t.history).order_by(t.history.c.job_id, t.history.c.seq))
    for row in rows:
        before = states.get(row.job_id)
        if row.seq != counts.get(row.job_id, 0) + 1:
            found.append(f"{row.job_id}: history jumps to {row.seq}")
        counts[row.job_id] = row.seq
        if before is not None:
            move = TABLE.get((before, JobEvent(row.event)))
            if row.from_state != before or move is None or move.to != row.to_state:
                found.append(f"{row.job_id}: illegal {before} -{row.event}-> {row.to_state}")
        states[row.job_id] = JobState(row.to_state)
    return found + [
        f"{job.id}: state {job.state}, history says {states.get(job.id)}"
        for job in connection.execute(sa.select(t.jobs.c.id, t.jobs.c.state))
        if states.get(job.id) != job.state
    ]


def _overlapping_allocations(connection: sa.Connection) -> list[str]:
    """I4 over all time, not only now: no two allocations of one GPU leaf overlap."""
    a = t.allocations
    rows = connection.execute(
        sa.select(a.c.gpu_id, a.c.leaf, a.c.attempt_id, a.c.created_at, a.c.released_at)
        .where(a.c.gpu_id.is_not(None))
        .order_by(a.c.gpu_id, a.c.leaf, a.c.created_at, a.c.id)
    ).all()
    found = []
    for earlier, later in pairwise(rows):
        if (earlier.gpu_id, earlier.leaf) == (later.gpu_id, later.leaf) and (
            earlier.released_at is None or earlier.released_at > later.created_at
        ):
            found.append(f"{earlier.gpu_id}: {earlier.attempt_id} overlaps {later.attempt_id}")
    return found


def _node_sums(connection: sa.Connection) -> list[str]:
    a, n = t.allocations, t.nodes
    granted: Mapping[tuple[str, str], int] = {
        (row.node_id, row.resource): int(row.total)
        for row in connection.execute(
            sa.select(a.c.node_id, a.c.resource, sa.func.sum(a.c.amount).label("total"))
            .where(a.c.live)
            .group_by(a.c.node_id, a.c.resource)
        )
    }
    found = []
    for node in connection.execute(sa.select(n)):
        for resource, used in (("cpu", node.cpu_milli_used), ("memory", node.memory_mib_used)):
            if granted.get((node.id, resource), 0) != used:
                found.append(
                    f"{node.name}: {resource} used {used},"
                    f" allocations say {granted.get((node.id, resource), 0)}"
                )
    return found


def _live_attempts(connection: sa.Connection) -> list[str]:
    rows = connection.execute(
        sa.select(t.attempts.c.job_id, sa.func.count().label("n"))
        .where(t.attempts.c.live)
        .group_by(t.attempts.c.job_id)
        .having(sa.func.count() > 1)
    )
    return [f"{row.job_id}: {row.n} live attempts" for row in rows]


def _journal(connection: sa.Connection) -> list[str]:
    head = connection.execute(sa.select(t.head.c.revision)).scalar_one()
    count, last = connection.execute(
        sa.select(sa.func.count(), sa.func.coalesce(sa.func.max(t.journal.c.revision), 0))
    ).one()
    return [] if count == last == head else [f"journal: {count} rows, last {last}, head {head}"]
