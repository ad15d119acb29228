"""The wrong versions of production functions: each takes the right one and gives what replaces it.

They reach into private parts on purpose, as the mistakes they stand for would have been made there.
"""

# ruff: noqa: SLF001 - see above

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, TypeAlias

from sqlalchemy import text

from scheduler.errors import StorageError
from scheduler.model.execution import IntentKind, Outcome, Phase, Receipt
from scheduler.model.lifecycle import EndCause, JobEvent
from scheduler.store import attempts, jobs, outcome, placing, writer
from scheduler.store.attempts import End

Wrong: TypeAlias = Callable[..., Any]


def nothing(answer: object = None) -> Callable[[Any], Wrong]:
    """It does nothing."""
    return lambda _right: lambda *_args, **_kwargs: answer


def timeout_is_failure(right: Wrong) -> Wrong:
    """A launch nobody answered is settled as refused."""

    async def act(self: Any, intent: Any, *, seen_before: bool) -> Any:
        receipt = await right(self, intent, seen_before=seen_before)
        if receipt is None and intent.kind is IntentKind.LAUNCH:
            return Receipt(Outcome.REFUSED, "timed out")
        return receipt

    return act


def claim_expires(right: Wrong) -> Wrong:
    """A launch that another daemon claimed and nobody carried out is given up, unforbidden."""

    async def launch(self: Any, order: Any, *, seen_before: bool) -> Any:
        if seen_before:
            (seen,) = await self._executor.observe([order.attempt_id])
            if seen.phase is Phase.UNCLAIMED:
                return Receipt(Outcome.REFUSED, "claimed by a daemon that died")
        return await right(self, order, seen_before=seen_before)

    return launch


def silence_is_death(right: Wrong) -> Wrong:
    """What cannot be told is recorded as death."""

    def observe(tx: Any, seen: Any, limits: Any, now: Any) -> Any:
        if seen.phase is Phase.UNKNOWN:
            seen = replace(seen, phase=Phase.VANISHED)
        return right(tx, seen, limits, now)

    return observe


def second_silence_is_death(right: Wrong) -> Wrong:
    """What cannot be told twice in a row is recorded as death."""

    async def take_in(self: Any, news: Any) -> None:
        def believed(seen: Any) -> Any:
            if seen.phase is Phase.UNKNOWN and seen.attempt_id in self._retries:
                return replace(seen, phase=Phase.VANISHED, message="silent for too long")
            return seen

        await right(self, [believed(seen) for seen in news])

    return take_in


def deltas_without_ends(right: Wrong) -> Wrong:
    """Deltas do not say which attempts are over."""
    return lambda tx, base, sees: replace(right(tx, base, sees), live_gone=())


def places_what_is_left(right: Wrong) -> Wrong:
    """A gang whose last task has no room is placed without it."""

    def take(self: Any, placement: Any) -> Any:
        found = right(self, placement)
        if found is not None or len(placement.tasks) == 1:
            return found
        left = replace(placement, tasks=placement.tasks[:-1])
        job = self.books.jobs.get(placement.job_id)
        try:
            self._check_room(left)
            program = placing._program(job, left)
        except (placing._RefusedError, placing._UnreadableError):
            return None
        if job is None or job.state != "PENDING" or job.eligible_at > self.books.now:
            return None
        self.refused.pop()
        self._count(left, 1)
        self.placed[placement.job_id] = None
        return placing._Fitting(left, job, program, self.books.ids.new("a"))

    return take


def only_the_places(_right: Wrong) -> Wrong:
    """Nobody looks whether GPUs, CPU and memory are still free."""

    def check_room(self: Any, placement: Any) -> None:
        for task in placement.tasks:
            placing._check_task(self.books, task)

    return check_room


def freed_when_stop_is_sent(right: Wrong) -> Wrong:
    """A stop that was delivered ends the attempt in the books."""

    def settle(self: Any, tx: Any, told: Any, now: Any) -> None:
        right(self, tx, told, now)
        query = text("SELECT attempt_id FROM intents WHERE id = :id AND kind = 'stop'")
        for intent_id, receipt in told:
            attempt_id = tx.connection.execute(query, {"id": intent_id}).scalar_one_or_none()
            live = None if attempt_id is None else outcome._live(tx, attempt_id)
            if live is not None and receipt.outcome is Outcome.DONE:
                end = End(EndCause.CANCELLED, now)
                outcome._finish(tx, live, outcome._job(tx, live), end, self._limits, now)

    return settle


def as_if(**wrong: object) -> Callable[[Any], Wrong]:
    """The job is judged as if some of its columns were others."""

    def patch(right: Wrong) -> Wrong:
        def judge(job: Any, *rest: Any) -> Any:
            return right(SimpleNamespace(**{**job._mapping, **wrong}), *rest)

        return judge

    return patch


def requeues_for_ever(right: Wrong) -> Wrong:
    """Free requeues have no bound."""

    def lost(job: Any, state: Any, limits: Any, now: Any) -> Any:
        return right(job, state, replace(limits, free_requeues_max=10**9), now)

    return lost


def reopens(right: Wrong) -> Wrong:
    """An observation of a running attempt that is over sets its job running."""

    def observe(tx: Any, seen: Any, limits: Any, now: Any) -> Any:
        moved = right(tx, seen, limits, now)
        if moved is None and seen.phase is Phase.RUNNING:
            tx.connection.execute(
                text(
                    "UPDATE jobs SET state = 'RUNNING'"
                    " WHERE id = (SELECT job_id FROM attempts WHERE id = :attempt)"
                ),
                {"attempt": seen.attempt_id},
            )
        return moved

    return observe


def any_attempt_of_the_job(right: Wrong) -> Wrong:
    """An observation of an attempt that is over counts for the live one of its job."""

    def live(tx: Any, attempt_id: Any) -> Any:
        query = text("SELECT job_id FROM attempts WHERE id = :attempt")
        job = tx.connection.execute(query, {"attempt": attempt_id}).scalar_one_or_none()
        found = right(tx, attempt_id)
        return found if found is not None or job is None else attempts.live_attempt(tx, job)

    return live


def unaudited(action: str) -> Callable[[Any], Wrong]:
    """This action leaves no audit row."""

    def patch(right: Wrong) -> Wrong:
        def done(tx: Any, actor: Any, before: Any, what: str, *rest: Any) -> Any:
            if what == action:
                return jobs.by_id(tx, before.id)
            return right(tx, actor, before, what, *rest)

        return done

    return patch


def skips_gpus(right: Wrong) -> Wrong:
    """Changes of GPUs take a revision and leave no journal row."""

    def append(self: Any, *, kind: str, **rest: Any) -> int:
        revision = int(right(self, kind=kind, **rest))
        if kind == "gpu":
            self._journal_rows.pop()
        return revision

    return append


def ignores(event: JobEvent) -> Callable[[Any], Wrong]:
    """This event moves nothing."""

    def patch(right: Wrong) -> Wrong:
        def move(tx: Any, found: Any, what: JobEvent, *rest: Any) -> None:
            if what is not event:
                right(tx, found, what, *rest)

        return move

    return patch


def answers_first(right: Wrong) -> Wrong:
    """Each caller is answered as soon as its command has run."""

    def serve(self: Any, batch: list[Any]) -> None:
        def early(command: Any) -> Any:
            def run(tx: Any) -> Any:
                value = command.run(tx)
                command.future.set_result(value)
                return value

            told = writer._Command(run, command.failpoint)
            told.future.set_running_or_notify_cancel()
            told.future.add_done_callback(lambda done: _pass_on(done, command.future))
            return told

        right(self, [early(command) for command in batch])

    return serve


def _pass_on(done: Any, to: Any) -> None:
    if not to.done() and done.exception() is not None:
        to.set_exception(done.exception())


def believes_the_commit(right: Wrong) -> Wrong:
    """A commit that fails is taken for done."""

    def transact(self: Any, batch: list[Any]) -> Any:
        values: list[Any] = []

        def noted(command: Any) -> Any:
            def run(tx: Any) -> Any:
                values.append(command.run(tx))
                return values[-1]

            return replace(command, run=run)

        try:
            return right(self, [noted(command) for command in batch])
        except StorageError:
            if len(values) < len(batch):
                raise
            return [writer._Outcome(value) for value in values], None

    return transact


def only_the_first_pass(right: Wrong) -> Wrong:
    """Only the first comparison of host and store is made."""

    async def make_pass(self: Any) -> None:
        if not getattr(self, "_adopted", False):
            self._adopted = True
            await right(self)

    return make_pass


def gone_is_free(right: Wrong) -> Wrong:
    """What a node held is free as soon as the inventory does not name it."""

    def sync(tx: Any, found: Any, *, now: Any) -> int:
        changes = right(tx, found, now=now)
        tx.connection.execute(
            text(
                "UPDATE allocations SET live = false WHERE live AND node_id IN"
                " (SELECT id FROM nodes WHERE NOT present)"
            )
        )
        return int(changes)

    return sync


def same_epoch_again(right: Wrong) -> Wrong:
    """Every leader has the first epoch."""

    def acquire(tx: Any, *rest: Any) -> int:
        epoch = int(right(tx, *rest))
        if epoch > 1:
            tx.connection.execute(text("UPDATE leader_lease SET epoch = 1"))
        return 1

    return acquire


def sums_stay(_right: Any) -> Any:
    """What an attempt held stays in the sums of its nodes."""
    return text(
        "UPDATE nodes SET cpu_milli_used = cpu_milli_used"
        " WHERE id = :node AND :cpu >= 0 AND :memory >= 0"
    )


def blind_outlook(right: Wrong) -> Wrong:
    """As before the simulation found it: whose turn lies in the clock's future is not awaited."""

    def outlook(found: Any, now: Any) -> Any:
        waiting = {
            key: job for key, job in found.waiting.items() if job.eligible_at > job.submitted_at
        }
        told = right(replace(found, waiting=waiting), now)
        return replace(told, waiting=len(found.waiting))

    return outlook


def only_the_timer(right: Wrong) -> Wrong:
    """Only the timer tells that a job may start now; what wakes a cycle before it swallows that."""

    async def run(context: Any, before: Any, *, force: bool) -> Any:
        return await right(context, replace(before, awaited_at=None), force=force)

    return run
