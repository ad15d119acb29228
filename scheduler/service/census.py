"""Counts for metrics: how much is alive. They name nobody, so no actor is asked."""

from __future__ import annotations

from sqlalchemy import func, select

from scheduler.model.lifecycle import TERMINAL, JobState
from scheduler.store.tables import intents, jobs
from scheduler.store.transaction import Transaction

_OPEN = ("pending", "claimed")


def live_jobs(tx: Transaction) -> dict[str, int]:
    """Jobs that are not over, by state; every such state is present.

    Cost: one scan of the state index, over live jobs only.
    """
    alive = [state.value for state in JobState if state not in TERMINAL]
    query = select(jobs.c.state, func.count()).where(jobs.c.state.in_(alive)).group_by(jobs.c.state)
    counted = {str(state): int(count) for state, count in tx.connection.execute(query)}
    return {state: counted.get(state, 0) for state in alive}


def open_intents(tx: Transaction) -> dict[str, int]:
    """Intents whose outcome is not stored yet, by state. Cost: one scan of the partial index."""
    query = (
        select(intents.c.state, func.count())
        .where(intents.c.state.in_(_OPEN))
        .group_by(intents.c.state)
    )
    counted = {str(state): int(count) for state, count in tx.connection.execute(query)}
    return {state: counted.get(state, 0) for state in _OPEN}
