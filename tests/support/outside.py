"""Gangs of pods that somebody else made, and a store that takes them in."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from support.builders import NOW, placement, task_placement
from support.ids import SequentialIds
from support.ledger import leaks, violations
from support.store import META, attempt_rows, history_of, job_row

from scheduler.ids import IdSource
from scheduler.model.execution import AttemptObservation, Intent, IntentKind, Outcome, Receipt
from scheduler.model.job import JobShape, Topology
from scheduler.model.lifecycle import JobState
from scheduler.model.node import Node
from scheduler.model.outside import OutsideGang
from scheduler.model.plan import Plan
from scheduler.model.ports import CommitReport
from scheduler.model.quantity import (
    DEFAULT_QUEUE,
    AttemptId,
    JobId,
    QueueName,
    Resources,
    TenantId,
    UtcSeconds,
)
from scheduler.model.site import ANYWHERE, Amounts, Site
from scheduler.store.database import Database, Transaction
from scheduler.store.execution import SqlExecutionStore
from scheduler.store.inventory import sync_nodes
from scheduler.store.lease import acquire
from scheduler.store.outside import SqlOutsideStore
from scheduler.store.plans import commit_plan
from scheduler.store.transaction import Transactions

T = TypeVar("T")
BOTH = (IntentKind.STOP, IntentKind.LAUNCH)
DONE = Receipt(Outcome.DONE)


def outside_gang(
    key: str = "k-0",
    *,
    tasks: int = 1,
    gpus: int = 1,
    cpu_milli: int = 1_000,
    memory_mib: int = 1_024,
    namespace: str = "team-a",
    queue: str = DEFAULT_QUEUE,
    priority: int = 50,
    topology: Topology = Topology.ANY,
    site: Site = ANYWHERE,
    extras: Amounts = (),
    preemptible: bool = True,
    members: Sequence[str] | None = None,
    submitted_at: float = NOW,
) -> OutsideGang:
    """A gang whose members are `<namespace>/<key>-<index>/u-<key>-<index>`."""
    named = [f"{namespace}/{key}-{index}/u-{key}-{index}" for index in range(tasks)]
    return OutsideGang(
        key=key,
        name=key,
        tenant=TenantId(namespace),
        queue=QueueName(queue),
        priority=priority,
        shape=JobShape(
            tasks,
            Resources(gpus, cpu_milli, memory_mib),
            topology=topology,
            site=site,
            extras=extras,
        ),
        members=tuple(named if members is None else members),
        preemptible=preemptible,
        submitted_at=UtcSeconds(submitted_at),
    )


def execution_store(database: Transactions, epoch: int, ids: IdSource) -> SqlExecutionStore:
    """An execution store that gives up after three failures in a row."""
    return SqlExecutionStore(
        database,
        epoch=epoch,
        ids=ids,
        free_requeues_max=3,
        retry_backoff_max_s=100,
        requeue_backoff_s=4,
        requeue_backoff_max_s=7,
    )


@dataclass
class OutsideWorld:
    """A store with nodes, followed and executed by one leader.

    Attributes:
        now: the instant of what is done next.
    """

    database: Database
    epoch: int
    ids: SequentialIds
    outside: SqlOutsideStore
    execution: SqlExecutionStore
    now: UtcSeconds = NOW

    @classmethod
    def build(cls, database: Database, nodes: Sequence[Node]) -> OutsideWorld:
        """Take the lead of an open store and give it nodes."""
        ids = SequentialIds()

        def prepare(tx: Transaction) -> int:
            sync_nodes(tx, nodes, now=NOW)
            return acquire(tx, "me", 1e9, NOW)

        epoch = database.write_sync(prepare)
        return cls(
            database,
            epoch,
            ids,
            SqlOutsideStore(database, epoch, ids),
            execution_store(database, epoch, ids),
        )

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return asyncio.run(call)

    def adopt(self, *gangs: OutsideGang) -> dict[str, JobId]:
        return dict(self.run(self.outside.adopt(gangs, self.now)))

    def adopt_one(self, gang: OutsideGang) -> JobId:
        return self.adopt(gang)[gang.key]

    def withdraw(self, *keys: str, why: str = "its pods are gone") -> None:
        self.run(self.outside.withdraw(keys, why, self.now))

    def place(
        self,
        job_id: str,
        *where: tuple[Node, Iterable[int]],
        extras: Amounts = (),
        since: int | None = None,
    ) -> AttemptId:
        """Place task 0, 1, ... on these GPUs; the attempt.

        Args:
            job_id: whom to place.
            where: node and GPUs of each task.
            extras: what each task takes of further resources.
            since: revision that this was decided on; the present one unless told.

        Raises:
            LookupError: the placement was refused; the message says why.
        """
        tasks = [
            replace(task_placement(on, spots, task_index=index), extras=extras)
            for index, (on, spots) in enumerate(where)
        ]
        placed = placement(job_id, *reversed(tasks))

        def write(tx: Transaction) -> CommitReport:
            revision = tx.head_revision if since is None else since
            plan = Plan(snapshot_revision=revision, placements=(placed,))
            return commit_plan(
                tx, plan, epoch=self.epoch, decision=META, now=self.now, ids=self.ids
            )

        report = self.database.write_sync(write)
        if report.refused:
            raise LookupError(report.refused[0][1])
        return AttemptId(self.attempts(job_id)[-1].id)

    def claim(self, limit: int = 10) -> list[Intent]:
        return list(self.run(self.execution.claim_intents(BOTH, limit, self.now)))

    def settle(self, *intents: Intent) -> None:
        told = [(intent.id, DONE) for intent in intents]
        self.run(self.execution.settle_many(told, self.now))

    def launch(self, job_id: str, *where: tuple[Node, Iterable[int]]) -> AttemptId:
        """Place, claim and settle; the job is LAUNCHING."""
        attempt = self.place(job_id, *where)
        self.settle(*self.claim())
        return attempt

    def record(self, seen: AttemptObservation) -> JobState | None:
        (state,) = self.run(self.execution.record_many([seen], self.now))
        return state

    def job(self, job_id: str) -> Any:
        return self.database.read_sync(lambda tx: job_row(tx, job_id))

    def attempts(self, job_id: str) -> Sequence[Any]:
        return self.database.read_sync(lambda tx: attempt_rows(tx, job_id))

    def history(self, job_id: str) -> list[str]:
        return self.database.read_sync(lambda tx: history_of(tx, job_id))

    def assert_sound(self) -> None:
        found = self.database.read_sync(lambda tx: violations(tx.connection) + leaks(tx.connection))
        assert found == []
