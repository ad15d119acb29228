"""Gangs come, run, fail and go in any order: no key ever has two jobs that may run."""

from __future__ import annotations

from contextlib import ExitStack

import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from support.builders import node
from support.clock import ManualClock
from support.folders import quick_folder
from support.outside import OutsideWorld, outside_gang
from support.store import exited, phase, running
from typing_extensions import override

from scheduler.model.execution import Phase
from scheduler.model.lifecycle import EndCause, JobState
from scheduler.model.quantity import JobId, UtcSeconds
from scheduler.settings import StoreSettings
from scheduler.store import tables
from scheduler.store.database import Database, Transaction

NODE = node("n0", gpus=4)
KEYS = ("k-0", "k-1", "k-2", "k-3")
SOME = st.lists(st.sampled_from(KEYS), min_size=1, max_size=4)


class GangLife(RuleBasedStateMachine):
    """A small cluster outside, followed by one leader.

    Attributes:
        withdrawn: jobs whose gangs were taken away.
    """

    @initialize()
    def open(self) -> None:
        self.folder = ExitStack()
        data_dir = self.folder.enter_context(quick_folder())
        database = Database.open(StoreSettings(data_dir=data_dir), clock=ManualClock())
        self.world = OutsideWorld.build(database, [NODE])
        self.withdrawn: set[JobId] = set()

    def _open(self) -> dict[str, JobId]:
        found = self.world.run(self.world.outside.open_gangs())
        return {key: job.job_id for key, job in found.items()}

    def _later(self, seconds: float) -> None:
        self.world.now = UtcSeconds(self.world.now + seconds)

    @rule(keys=SOME)
    def adopt(self, keys: list[str]) -> None:
        before = self._open()
        made = self.world.adopt(*(outside_gang(key) for key in keys))
        assert made.keys() == set(keys)
        for key in keys:
            assert before.get(key, made[key]) == made[key], "a known key made a second job"
        assert self.world.adopt(*(outside_gang(key) for key in keys)) == made

    @rule(keys=SOME)
    def withdraw(self, keys: list[str]) -> None:
        known = self._open()
        self.world.withdraw(*keys)
        self.withdrawn |= {known[key] for key in keys if key in known}
        left = self._open()
        for key in keys:
            assert key not in left or self.world.job(left[key]).desired == "stop"

    @rule(key=st.sampled_from(KEYS))
    def place(self, key: str) -> None:
        job_id = self._open().get(key)
        if job_id is not None and self.world.job(job_id).state == JobState.PENDING:
            self._later(10)
            self.world.place(job_id, (NODE, (KEYS.index(key),)))

    @rule()
    def claim_and_settle(self) -> None:
        self.world.settle(*self.world.claim())

    @rule(key=st.sampled_from(KEYS), data=st.data())
    def observe(self, key: str, data: st.DataObject) -> None:
        job_id = self._open().get(key)
        made = [] if job_id is None else self.world.attempts(job_id)
        if made:
            attempt = made[-1].id
            seen = data.draw(
                st.sampled_from(
                    (
                        running(attempt),
                        phase(attempt, Phase.UNKNOWN),
                        phase(attempt, Phase.VANISHED),
                        exited(attempt),
                        exited(attempt, EndCause.USER, exit_code=1),
                        exited(attempt, EndCause.PREEMPTED),
                    )
                )
            )
            self._later(20)
            self.world.record(seen)

    @invariant()
    def one_key_has_one_job_that_may_run(self) -> None:
        def look(tx: Transaction) -> list[tuple[str, str]]:
            found = tables.jobs.c
            query = sa.select(found.name, found.state, found.id)
            return [
                (row.name, row.id)
                for row in tx.connection.execute(query)
                if not JobState(row.state).terminal
            ]

        may_run = self.world.database.read_sync(look)
        assert len({name for name, _ in may_run}) == len(may_run)

    @invariant()
    def what_was_withdrawn_never_starts_again(self) -> None:
        for job_id in self.withdrawn:
            state = JobState(self.world.job(job_id).state)
            assert state.terminal or state is JobState.STOPPING

    @invariant()
    def the_books_are_sound(self) -> None:
        self.world.assert_sound()

    @override
    def teardown(self) -> None:
        self.world.database.close()
        self.folder.close()


TestGangLife = GangLife.TestCase
TestGangLife.settings = settings(
    max_examples=15,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
