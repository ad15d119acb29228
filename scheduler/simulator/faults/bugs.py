"""Known mistakes to plant: each replaces one or two production functions by a wrong version.

A checker that has never failed proves nothing: every bug here must be found, and the name of the
invariant that finds it is part of what is measured. `row` is the row of the failure catalogue
(shared reference on reliability, section 2) whose required behaviour the bug breaks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from sqlalchemy import true

from scheduler import conductor, cycle
from scheduler.allocation import verify
from scheduler.execution import apply, reconcile, watch
from scheduler.model.lifecycle import JobEvent
from scheduler.service import moves, submission
from scheduler.simulator.faults import daemon
from scheduler.simulator.faults.mistakes import (
    answers_first,
    any_attempt_of_the_job,
    as_if,
    believes_the_commit,
    blind_outlook,
    claim_expires,
    deltas_without_ends,
    freed_when_stop_is_sent,
    gone_is_free,
    ignores,
    nothing,
    only_the_first_pass,
    only_the_places,
    only_the_timer,
    places_what_is_left,
    reopens,
    requeues_for_ever,
    same_epoch_again,
    second_silence_is_death,
    silence_is_death,
    skips_gpus,
    sums_stay,
    timeout_is_failure,
    unaudited,
)
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

Patch = Callable[[], AbstractContextManager[None]]
_ROOM = placing._Room  # noqa: SLF001 - a mistake would be made in there


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


BUGS: dict[str, Bug] = {
    "no-epoch-check": Bug(
        "2",
        "transactions do not check the leader's epoch",
        _wrong(lease, "require", nothing()),
    ),
    "epoch-reused": Bug(
        "2",
        "a new leader takes the epoch of the one before",
        _wrong(daemon, "acquire", same_epoch_again),
    ),
    "effect-before-commit": Bug(
        "1",
        "launches are carried out without their claim being stored",
        _wrong(execution, "_take", nothing()),
    ),
    "answer-before-commit": Bug(
        "1",
        "callers are answered before the COMMIT that keeps their change",
        _wrong(writer.Writer, "_serve", answers_first),
    ),
    "failed-commit-believed": Bug(
        "7",
        "a commit that fails on a full disk is taken for done",
        _wrong(writer.Writer, "_transact", believes_the_commit),
    ),
    "silent-watch": Bug(
        "13",
        "after the start nothing compares the host with the store",
        _wrong(reconcile.Reconciler, "make_pass", only_the_first_pass),
    ),
    "timeout-is-failure": Bug(
        "15",
        "a launch that times out counts as refused",
        _wrong(apply.Applier, "_act", timeout_is_failure),
    ),
    "terminal-reopened": Bug(
        "16",
        "a late observation of a finished attempt sets its job running again",
        _wrong(execution, "apply_observation", reopens),
    ),
    "cache-over-store": Bug(
        "17",
        "the cycle's cache misses that attempts end",
        _wrong(cycles, "load_delta", deltas_without_ends),
    ),
    "clock-set-back": Bug(
        "18",
        "a job whose turn lies ahead after the clock was set back is not waited for",
        _wrong(cycle, "_outlook", blind_outlook),
    ),
    "turn-swallowed": Bug(
        "18",
        "a cycle that something else woke does not see that a job may start by now",
        _wrong(conductor, "run_cycle", only_the_timer),
    ),
    "bad-places-given-out": Bug(
        "21, 23",
        "the commit does not look again whether nodes and GPUs still take work",
        _wrong(placing, "_check_task", nothing()),
    ),
    "freed-on-not-ready": Bug(
        "24",
        "a silent node counts as proof of death",
        _wrong(execution, "apply_observation", silence_is_death),
    ),
    "long-silence-is-death": Bug(
        "24",
        "a node that is silent for long counts as proof of death",
        _wrong(watch.Watcher, "_take_in", second_silence_is_death),
    ),
    "gone-node-freed": Bug(
        "24",
        "what a node held is freed when it leaves the inventory",
        _wrong(daemon, "sync_nodes", gone_is_free),
    ),
    "partial-gang": Bug(
        "25",
        "a gang is placed without the task that has no room",
        _wrong(_ROOM, "take_if_it_fits", places_what_is_left),
    ),
    "old-attempt-ends-new": Bug(
        "26",
        "an observation of an old attempt is applied to the job's present one",
        _wrong(outcome, "_live", any_attempt_of_the_job),
    ),
    "plan-unchecked": Bug(
        "27",
        "a plan is committed as the solver sent it",
        _wrong(cycle, "check_safety", nothing(answer=())),
    ),
    "forgotten-jobs-not-missed": Bug(
        "27",
        "nobody looks whether a plan places or explains every job that waits",
        _wrong(verify, "_reasons", nothing(answer=())),
    ),
    "no-quarantine": Bug(
        "29",
        "a job that keeps failing through no fault of its own is never quarantined",
        _wrong(outcome, "_lost", requeues_for_ever),
    ),
    "unreadable-refused-for-ever": Bug(
        "29",
        "a job that cannot be read is placed and refused in every cycle",
        _wrong(placing, "_set_aside", nothing()),
    ),
    "retry-unbounded": Bug(
        "30",
        "retries are not counted",
        _wrong(outcome, "_exited", as_if(retries_used=0)),
    ),
    "lost-cancel": Bug(
        "32",
        "a cancel of a job that is stopping for another cause is forgotten",
        _wrong(jobs, "set_desired_stop", nothing()),
    ),
    "cancel-loses": Bug(
        "32",
        "a job that was cancelled while being preempted goes back to the queue",
        _wrong(outcome, "_stopped", as_if(desired="run")),
    ),
    "freed-when-stop-is-sent": Bug(
        "32",
        "a stop that was delivered frees the place before the work is dead",
        _wrong(execution.SqlExecutionStore, "_settle", freed_when_stop_is_sent),
    ),
    "key-ignored": Bug(
        "33",
        "a repeated submission makes a second job",
        _wrong(submission, "_claim_key", nothing()),
    ),
    "claim-expires": Bug(
        "40",
        "a launch whose claim outlived its daemon is refused without a tombstone",
        _wrong(apply.Applier, "_launch", claim_expires),
    ),
    "audit-missing": Bug(
        "",
        "cancels leave no audit row",
        _wrong(moves, "_done", unaudited("jobs.cancel")),
    ),
    "journal-gap": Bug(
        "",
        "cordons of GPUs take a revision and are not journalled",
        _wrong(journal.Journal, "append", skips_gpus),
    ),
    "sums-not-returned": Bug(
        "",
        "CPU and memory of an attempt that ended stay counted",
        _wrong(attempts, "_GIVE_BACK", sums_stay),
    ),
    "tenant-leak": Bug(
        "",
        "everybody sees everybody's jobs",
        _wrong(jobs, "visible", nothing(answer=true())),
    ),
    "hold-ignored": Bug(
        "",
        "a hold is answered and not made",
        _wrong(moves, "_apply", ignores(JobEvent.HOLD)),
    ),
    "no-index-no-check": Bug(
        "",
        "one GPU may have two holders, and nobody checks plans or what is taken",
        _both(
            _wrong(cycle, "check_safety", nothing(answer=())),
            _wrong(_ROOM, "_check_room", only_the_places),
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
