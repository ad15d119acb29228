"""Known mistakes to plant: each replaces one or two production functions by a wrong version.

A checker that has never failed proves nothing: every bug here must be found, and the name of the
invariant that finds it is part of what is measured. `row` is the row of the failure catalogue
(shared reference on reliability, section 2) whose required behaviour the bug breaks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

from sqlalchemy import text, true

from scheduler import cycle
from scheduler.errors import StorageError
from scheduler.execution import apply, reconcile, watch
from scheduler.model.execution import IntentKind, Outcome, Phase, Receipt
from scheduler.model.lifecycle import EndCause, JobEvent
from scheduler.service import moves, submission
from scheduler.simulator.faults import daemon
from scheduler.simulator.faults.store import Disk
from scheduler.store import (
    attempts,
    cycles,
    execution,
    jobs,
    journal,
    lease,
    outcome,
    placing,
    writer,
)

Wrong = Callable[..., Any]
Patch = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Bug:
    """One mistake.

    Attributes:
        row: rows of the failure catalogue, or "" where it breaks another promise.
        story: what the code does wrong.
        plant: replaces the code while its context lasts.
        schema: statement that spoils the schema of each schedule, if any.
    """

    row: str
    story: str
    plant: Patch
    schema: str = ""


@contextmanager
def _swap(owner: Any, name: str, wrong: Callable[[Any], Any]) -> Iterator[None]:
    """Replace `owner.name` by what `wrong` makes of it."""
    right = getattr(owner, name)
    setattr(owner, name, wrong(right))
    try:
        yield
    finally:
        setattr(owner, name, right)


def _both(*patches: Patch) -> Patch:
    @contextmanager
    def plant() -> Iterator[None]:
        with ExitStack() as stack:
            for patch in patches:
                stack.enter_context(patch())
            yield

    return plant


def _wrong(owner: Any, name: str, wrong: Callable[[Any], Any]) -> Patch:
    return lambda: _swap(owner, name, wrong)


def _nothing(answer: object = None) -> Callable[[Any], Wrong]:
    """A function that does nothing."""
    return lambda _right: lambda *_args, **_kwargs: answer


# Each of these takes the right function and gives the wrong one.


def _timeout_is_failure(right: Wrong) -> Wrong:
    async def act(self: Any, intent: Any, *, seen_before: bool) -> Any:
        receipt = await right(self, intent, seen_before=seen_before)
        if receipt is None and intent.kind is IntentKind.LAUNCH:
            return Receipt(Outcome.REFUSED, "timed out")
        return receipt

    return act


def _claim_expires(right: Wrong) -> Wrong:
    async def launch(self: Any, order: Any, *, seen_before: bool) -> Any:
        if seen_before and self._executor.observe(order.attempt_id).phase is Phase.UNCLAIMED:
            return Receipt(Outcome.REFUSED, "claimed by a daemon that died")
        return await right(self, order, seen_before=seen_before)

    return launch


def _silence_is_death(right: Wrong) -> Wrong:
    def observe(tx: Any, seen: Any, limits: Any, now: Any) -> Any:
        if seen.phase is Phase.UNKNOWN:
            seen = replace(seen, phase=Phase.VANISHED)
        return right(tx, seen, limits, now)

    return observe


def _second_silence_is_death(right: Wrong) -> Wrong:
    async def take_in(self: Any, seen: Any) -> None:
        if seen.phase is Phase.UNKNOWN and seen.attempt_id in self._retries:
            seen = replace(seen, phase=Phase.VANISHED, message="silent for too long")
        await right(self, seen)

    return take_in


def _deltas_without_ends(right: Wrong) -> Wrong:
    return lambda tx, base: replace(right(tx, base), live_gone=())


def _places_what_is_left(right: Wrong) -> Wrong:
    def take(self: Any, placement: Any) -> Any:
        found = right(self, placement)
        if found is not None or len(placement.tasks) == 1:
            return found
        left = replace(placement, tasks=placement.tasks[:-1])
        job = self.books.jobs.get(placement.job_id)
        try:
            self._check_room(left)
            spec = placing._spec(job)
        except (placing._RefusedError, placing._UnreadableError):
            return None
        if job is None or job.state != "PENDING" or job.eligible_at > self.books.now:
            return None
        self.refused.pop()
        self._count(left, 1)
        self.placed[placement.job_id] = None
        return placing._Fitting(left, job, spec, self.books.ids.new("a"))

    return take


def _only_the_places(_right: Wrong) -> Wrong:
    def check_room(self: Any, placement: Any) -> None:
        for task in placement.tasks:
            placing._check_task(self.books, task)

    return check_room


def _freed_when_stop_is_sent(right: Wrong) -> Wrong:
    def settle(self: Any, tx: Any, intent_id: Any, receipt: Any, now: Any) -> None:
        right(self, tx, intent_id, receipt, now)
        query = text("SELECT attempt_id FROM intents WHERE id = :id AND kind = 'stop'")
        attempt_id = tx.connection.execute(query, {"id": intent_id}).scalar_one_or_none()
        live = None if attempt_id is None else outcome._live(tx, attempt_id)
        if live is not None and receipt.outcome is Outcome.DONE:
            end = outcome.End(EndCause.CANCELLED, now)
            outcome._finish(tx, live, outcome._job(tx, live), end, self._limits, now)

    return settle


def _as_if(**wrong: object) -> Callable[[Any], Wrong]:
    """The job is judged as if some of its columns were others."""

    def patch(right: Wrong) -> Wrong:
        def judge(job: Any, *rest: Any) -> Any:
            return right(SimpleNamespace(**{**job._mapping, **wrong}), *rest)

        return judge

    return patch


def _requeues_for_ever(right: Wrong) -> Wrong:
    def lost(job: Any, state: Any, limits: Any, now: Any) -> Any:
        return right(job, state, replace(limits, free_requeues_max=10**9), now)

    return lost


def _reopens(right: Wrong) -> Wrong:
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


def _any_attempt_of_the_job(right: Wrong) -> Wrong:
    def live(tx: Any, attempt_id: Any) -> Any:
        query = text("SELECT job_id FROM attempts WHERE id = :attempt")
        job = tx.connection.execute(query, {"attempt": attempt_id}).scalar_one_or_none()
        found = right(tx, attempt_id)
        return found if found is not None or job is None else attempts.live_attempt(tx, job)

    return live


def _unaudited(action: str) -> Callable[[Any], Wrong]:
    def patch(right: Wrong) -> Wrong:
        def done(tx: Any, actor: Any, before: Any, what: str, *rest: Any) -> Any:
            if what == action:
                return jobs.by_id(tx, before.id)
            return right(tx, actor, before, what, *rest)

        return done

    return patch


def _skips_gpus(right: Wrong) -> Wrong:
    def append(self: Any, *, kind: str, **rest: Any) -> int:
        revision = int(right(self, kind=kind, **rest))
        if kind == "gpu":
            self._journal_rows.pop()
        return revision

    return append


def _ignores(event: JobEvent) -> Callable[[Any], Wrong]:
    def patch(right: Wrong) -> Wrong:
        def move(tx: Any, found: Any, what: JobEvent, *rest: Any) -> None:
            if what is not event:
                right(tx, found, what, *rest)

        return move

    return patch


def _answers_first(right: Wrong) -> Wrong:
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


def _believes_the_commit(right: Wrong) -> Wrong:
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


def _only_the_first_pass(right: Wrong) -> Wrong:
    async def make_pass(self: Any) -> None:
        if not getattr(self, "_adopted", False):
            self._adopted = True
            await right(self)

    return make_pass


def _gone_is_free(right: Wrong) -> Wrong:
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


def _same_epoch_again(right: Wrong) -> Wrong:
    def acquire(tx: Any, *rest: Any) -> int:
        epoch = int(right(tx, *rest))
        if epoch > 1:
            tx.connection.execute(text("UPDATE leader_lease SET epoch = 1"))
        return 1

    return acquire


def _sums_stay(_right: Any) -> Any:
    return text(
        "UPDATE nodes SET cpu_milli_used = cpu_milli_used"
        " WHERE id = :node AND :cpu >= 0 AND :memory >= 0"
    )


def _blind_outlook(right: Wrong) -> Wrong:
    """As it was before the simulation found it: who is due in the 'future' is not waited for."""

    def outlook(found: Any, decided_at: Any, _now: Any) -> Any:
        waiting = {
            key: job
            for key, job in found.waiting.items()
            if job.eligible_at > decided_at and job.eligible_at > job.submitted_at
        }
        told = right(replace(found, waiting=waiting), decided_at, decided_at)
        return replace(told, waiting=len(found.waiting))

    return outlook


BUGS: dict[str, Bug] = {
    "no-epoch-check": Bug(
        "2",
        "transactions do not check the leader's epoch",
        _wrong(lease, "require", _nothing()),
    ),
    "epoch-reused": Bug(
        "2",
        "a new leader takes the epoch of the one before",
        _wrong(daemon, "acquire", _same_epoch_again),
    ),
    "effect-before-commit": Bug(
        "1",
        "launches are carried out without their claim being stored",
        _wrong(execution, "_claim_one", _nothing(answer=True)),
    ),
    "answer-before-commit": Bug(
        "1",
        "callers are answered before the COMMIT that keeps their change",
        _wrong(writer.Writer, "_serve", _answers_first),
    ),
    "failed-commit-believed": Bug(
        "7",
        "a commit that fails on a full disk is taken for done",
        _wrong(writer.Writer, "_transact", _believes_the_commit),
    ),
    "silent-watch": Bug(
        "13",
        "after the start nothing compares the host with the store",
        _wrong(reconcile.Reconciler, "make_pass", _only_the_first_pass),
    ),
    "timeout-is-failure": Bug(
        "15",
        "a launch that times out counts as refused",
        _wrong(apply.Applier, "_act", _timeout_is_failure),
    ),
    "terminal-reopened": Bug(
        "16",
        "a late observation of a finished attempt sets its job running again",
        _wrong(execution, "apply_observation", _reopens),
    ),
    "cache-over-store": Bug(
        "17",
        "the cycle's cache misses that attempts end",
        _wrong(cycles, "load_delta", _deltas_without_ends),
    ),
    "clock-set-back": Bug(
        "18",
        "a job whose turn lies ahead after the clock was set back is not waited for",
        _wrong(cycle, "_outlook", _blind_outlook),
    ),
    "bad-places-given-out": Bug(
        "21, 23",
        "the commit does not look again whether nodes and GPUs still take work",
        _wrong(placing, "_check_task", _nothing()),
    ),
    "freed-on-not-ready": Bug(
        "24",
        "a silent node counts as proof of death",
        _wrong(execution, "apply_observation", _silence_is_death),
    ),
    "long-silence-is-death": Bug(
        "24",
        "a node that is silent for long counts as proof of death",
        _wrong(watch.Watcher, "_take_in", _second_silence_is_death),
    ),
    "gone-node-freed": Bug(
        "24",
        "what a node held is freed when it leaves the inventory",
        _wrong(daemon, "sync_nodes", _gone_is_free),
    ),
    "partial-gang": Bug(
        "25",
        "a gang is placed without the task that has no room",
        _wrong(placing._Room, "take_if_it_fits", _places_what_is_left),
    ),
    "old-attempt-ends-new": Bug(
        "26",
        "an observation of an old attempt is applied to the job's present one",
        _wrong(outcome, "_live", _any_attempt_of_the_job),
    ),
    "plan-unchecked": Bug(
        "27",
        "a plan is committed as the solver sent it",
        _wrong(cycle, "check_safety", _nothing(answer=())),
    ),
    "no-quarantine": Bug(
        "29",
        "a job that keeps failing through no fault of its own is never quarantined",
        _wrong(outcome, "_lost", _requeues_for_ever),
    ),
    "unreadable-refused-for-ever": Bug(
        "29",
        "a job that cannot be read is placed and refused in every cycle",
        _wrong(placing, "_set_aside", _nothing()),
    ),
    "retry-unbounded": Bug(
        "30",
        "retries are not counted",
        _wrong(outcome, "_exited", _as_if(retries_used=0)),
    ),
    "lost-cancel": Bug(
        "32",
        "a cancel of a job that is stopping for another cause is forgotten",
        _wrong(jobs, "set_desired_stop", _nothing()),
    ),
    "cancel-loses": Bug(
        "32",
        "a job that was cancelled while being preempted goes back to the queue",
        _wrong(outcome, "_stopped", _as_if(desired="run")),
    ),
    "freed-when-stop-is-sent": Bug(
        "32",
        "a stop that was delivered frees the place before the work is dead",
        _wrong(execution.SqlExecutionStore, "_settle", _freed_when_stop_is_sent),
    ),
    "key-ignored": Bug(
        "33",
        "a repeated submission makes a second job",
        _wrong(submission, "_claim_key", _nothing()),
    ),
    "claim-expires": Bug(
        "40",
        "a launch whose claim outlived its daemon is refused without a tombstone",
        _wrong(apply.Applier, "_launch", _claim_expires),
    ),
    "audit-missing": Bug(
        "",
        "cancels leave no audit row",
        _wrong(moves, "_done", _unaudited("jobs.cancel")),
    ),
    "journal-gap": Bug(
        "",
        "cordons of GPUs take a revision and are not journalled",
        _wrong(journal.Journal, "append", _skips_gpus),
    ),
    "sums-not-returned": Bug(
        "",
        "CPU and memory of an attempt that ended stay counted",
        _wrong(attempts, "_GIVE_BACK", _sums_stay),
    ),
    "tenant-leak": Bug(
        "",
        "everybody sees everybody's jobs",
        _wrong(jobs, "visible", _nothing(answer=true())),
    ),
    "hold-ignored": Bug(
        "",
        "a hold is answered and not made",
        _wrong(moves, "_apply", _ignores(JobEvent.HOLD)),
    ),
    "no-index-no-check": Bug(
        "",
        "one GPU may have two holders, and nobody checks plans or what is taken",
        _both(
            _wrong(cycle, "check_safety", _nothing(answer=())),
            _wrong(placing._Room, "_check_room", _only_the_places),
        ),
        schema="DROP INDEX uq_allocations_live_leaf",
    ),
}
"""By name. Half of them and more break rows of the catalogue."""


@contextmanager
def planted(name: str | None, disk: Disk) -> Iterator[None]:
    """Plant a bug while the context lasts; None plants nothing."""
    bug = None if name is None else BUGS[name]
    disk.spoil = "" if bug is None else bug.schema
    try:
        with nullcontext() if bug is None else bug.plant():
            yield
    finally:
        disk.spoil = ""
