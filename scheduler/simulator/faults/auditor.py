"""Reads the books when something has changed, and holds every invariant against them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from scheduler.model.lifecycle import TERMINAL, JobState
from scheduler.model.quantity import JobId, TenantId
from scheduler.model.snapshot import Snapshot
from scheduler.simulator.faults.books import News, Reader
from scheduler.simulator.faults.daemon import SimulatedDaemon
from scheduler.simulator.faults.invariants import INVARIANTS, State, Tally
from scheduler.simulator.faults.store import Disk
from scheduler.simulator.faults.users import Memory
from scheduler.simulator.faults.world import World
from scheduler.store.snapshot import load_delta
from scheduler.store.transaction import Transaction

_UNTOLD = (
    "SELECT id FROM jobs WHERE state = 'PENDING' AND revision <= ?"
    " AND class_key NOT IN (SELECT class_key FROM reasons) ORDER BY id"
)


class Auditor:
    """Checks every invariant after each step, and says who has not settled in the end."""

    def __init__(self, disk: Disk, world: World, memory: Memory) -> None:
        driver = self._driver = disk.driver
        self._engine = disk.engine
        self._reader = Reader(driver)
        self._world = world
        self._memory = memory
        self._tally = Tally()
        self._books = self._reader.books()
        self._seen = (driver.total_changes, 0, 0)
        self._first = self._reader.news()

    def check(self, daemons: Sequence[SimulatedDaemon]) -> tuple[str, str] | None:
        """The first invariant that does not hold, and why; None while all hold."""
        versions = (self._driver.total_changes, self._world.changes, self._memory.changes)
        if versions == self._seen:
            return None
        before, news = self._books, News()
        if versions[0] != self._seen[0]:
            self._books, news = self._reader.books(), self._reader.news()
        self._seen = versions
        started = [run for key, run in self._world.runs.items() if key not in self._tally.runs]
        self._tally.runs.update(run.order.attempt_id for run in started)
        state = State(
            books=self._books,
            before=before,
            news=news,
            world=self._world,
            memory=self._memory,
            daemons=daemons,
            tally=self._tally,
            alive=self._world.alive(),
            started=started,
        )
        for name, invariant in INVARIANTS.items():
            for message in invariant(state):
                return name, message
        return None

    def drift(self, snapshot: Snapshot) -> str:
        """Where a snapshot that was fed by deltas differs from the store; "" where it does not.

        Most over-commitment in such systems comes from caches that drift (I4). Nothing is told of
        a snapshot that is older than the store.
        """
        with self._engine.connect() as connection, connection.begin():
            tx = Transaction(connection)
            if tx.head_revision != snapshot.revision:
                return ""
            stored = Snapshot().apply(load_delta(tx, 0))
        for part in ("nodes", "live", "waiting"):
            if getattr(stored, part) != getattr(snapshot, part):
                return f"the cycle's {part} at revision {snapshot.revision} are not the store's"
        return ""

    def untold(self, epoch: int, revision: int, refused: Collection[JobId]) -> str:
        """A job that a decision left waiting without a reason; "" where every one has its reason.

        Such a job has no place and no reason to be looked at again: it settles by luck only (I14).

        Args:
            epoch: of who decided. Nothing is told of a former leader.
            revision: of the snapshot it was decided on; who has changed since is not looked at.
            refused: jobs that were placed and refused: the next decision comes at once.
        """
        if epoch != self._reader.books().epoch:
            return ""
        rows = self._driver.execute(_UNTOLD, (revision,))
        return next((row[0] for row in rows if row[0] not in refused), "")

    def cordoned(self) -> list[str]:
        """Nodes and GPUs that are out of service."""
        rows = self._driver.execute(
            "SELECT id FROM nodes WHERE cordoned UNION ALL SELECT id FROM gpus WHERE cordoned"
        )
        return sorted(row[0] for row in rows)

    def held(self) -> list[tuple[JobId, TenantId]]:
        """Jobs that wait for a person to let them go."""
        return [
            (JobId(job.id), TenantId(job.tenant_id))
            for job in self._books.jobs.values()
            if job.state == JobState.HELD
        ]

    def unsettled(self) -> list[str]:
        """What is not over: jobs (but those in quarantine), processes, claims and allocations."""
        books = self._books
        return [
            *(
                f"{job.id} is {job.state}"
                for job in books.jobs.values()
                if job.state not in TERMINAL and job.state != JobState.QUARANTINED
            ),
            *(f"{run.order.attempt_id} runs" for run in self._world.alive()),
            *(
                f"the {row.kind} of {row.attempt_id} is {row.state}"
                for row in books.intents
                if row.state in ("pending", "claimed")
            ),
            *(f"{row.attempt_id} holds {row.resource}" for row in books.held),
        ]
