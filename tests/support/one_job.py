"""One job `j-0` on one node, driven through the execution store as the daemon would."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from support.builders import NOW, node, placement, task_placement
from support.ids import SequentialIds
from support.ledger import leaks, violations
from support.store import attempt_rows, commit, history_of, job_row, rows, running

from scheduler.model.execution import (
    AttemptObservation,
    Intent,
    IntentKind,
    Outcome,
    Receipt,
)
from scheduler.model.lifecycle import EndCause, JobEvent, JobState
from scheduler.model.quantity import JobId, UtcSeconds
from scheduler.store import tables
from scheduler.store.attempts import stop_job
from scheduler.store.database import Database, Transaction
from scheduler.store.execution import SqlExecutionStore

T = TypeVar("T")
NODE = node("n0", gpus=2)
DONE = Receipt(Outcome.DONE)
BOTH = (IntentKind.LAUNCH, IntentKind.STOP)


def later(seconds: float) -> UtcSeconds:
    return UtcSeconds(NOW + seconds)


@dataclass
class OneJob:
    """One job `j-0`, driven through the store as the daemon would."""

    database: Database
    store: SqlExecutionStore
    epoch: int
    ids: SequentialIds

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return asyncio.run(call)

    def place(self) -> str:
        """Place j-0 on the first GPU; its attempt."""

        def write(tx: Transaction) -> str:
            freed = [row.released_at for row in rows(tx, tables.allocations)]
            now = UtcSeconds(max([job_row(tx, "j-0").eligible_at, *freed]))
            place = placement("j-0", task_placement(NODE, (0,)))
            report = commit(tx, [place], epoch=self.epoch, ids=self.ids, now=now)
            assert report.placed == ("j-0",)
            return str(attempt_rows(tx, "j-0")[-1].id)

        return self.database.write_sync(write)

    def claim(self, *kinds: IntentKind) -> list[Intent]:
        return list(self.run(self.store.claim_intents(kinds or BOTH, 10, later(1))))

    def settle(self, intent: Intent, receipt: Receipt = DONE) -> None:
        self.run(self.store.settle_many([(intent.id, receipt)], later(2)))

    def record(self, seen: AttemptObservation, at: float = 20) -> JobState | None:
        (state,) = self.run(self.store.record_many([seen], later(at)))
        return state

    def launch(self) -> str:
        """Place, claim and settle; j-0 is LAUNCHING."""
        attempt = self.place()
        (intent,) = self.claim(IntentKind.LAUNCH)
        self.settle(intent)
        return attempt

    def start(self) -> str:
        attempt = self.launch()
        assert self.record(running(attempt)) is JobState.RUNNING
        return attempt

    def stop(self, event: JobEvent, cause: EndCause, desired: str | None = None) -> None:
        self.database.write_sync(
            lambda tx: stop_job(
                tx,
                JobId("j-0"),
                event,
                cause=cause,
                now=later(5),
                ids=self.ids,
                desired=desired,
            )
        )

    def cancel(self) -> None:
        self.stop(JobEvent.CANCEL, EndCause.CANCELLED, "stop")

    @property
    def job(self) -> Any:
        return self.database.read_sync(lambda tx: job_row(tx, "j-0"))

    @property
    def attempt(self) -> Any:
        return self.database.read_sync(lambda tx: attempt_rows(tx, "j-0")[-1])

    @property
    def history(self) -> list[str]:
        return self.database.read_sync(lambda tx: history_of(tx, "j-0"))

    def assert_sound(self) -> None:
        found = self.database.read_sync(lambda tx: violations(tx.connection) + leaks(tx.connection))
        assert found == []

    def assert_all_free(self) -> None:
        def check(tx: Transaction) -> None:
            assert not any(row.live for row in rows(tx, tables.allocations))
            assert not any(row.live for row in rows(tx, tables.attempts))
            used = [(row.cpu_milli_used, row.memory_mib_used) for row in rows(tx, tables.nodes)]
            assert used == [(0, 0)]
            open_ones = [row for row in rows(tx, tables.intents) if row.state in OPEN]
            assert open_ones == []

        self.database.read_sync(check)
        self.assert_sound()


OPEN = ("pending", "claimed")
