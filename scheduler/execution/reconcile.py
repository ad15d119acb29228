"""Compares what the store expects with what the host shows, and mends the difference.

| store says       | host shows                  | action                                        |
|------------------|-----------------------------|-----------------------------------------------|
| live             | EXITED, VANISHED, ABSENT    | RECORD                                        |
| live             | UNKNOWN                     | RECORD (the job becomes SUSPECT)              |
| stop ordered     | STARTING, RUNNING           | STOP_AGAIN                                    |
| RUNNING          | RUNNING                     | none                                          |
| any other live   | RUNNING                     | RECORD                                        |
| live             | STARTING                    | none                                          |
| launch claimed   | UNCLAIMED                   | ABANDON: it can never start, then RECORD      |
| launch unclaimed | UNCLAIMED                   | none: its turn will come                      |
| not live         | STARTING, RUNNING, UNCLAIMED| KILL_STRAY                                    |
| not live         | EXITED, VANISHED, ABSENT    | FORGET                                        |
| not live         | UNKNOWN                     | none: wait until it can be told               |

Attempts whose orders are being carried out are left alone, but for RECORD. KILL_STRAY and ABANDON
cannot be undone: they need two agreeing passes, and a pass that would kill more than a tenth of
what lives (but one) kills nothing and raises the alarm instead. What the host shows is what
`Executor.known` names: traces that others left there are nobody's stray.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import StrEnum

import structlog

from scheduler import failpoints
from scheduler.clock import Clock
from scheduler.errors import FencedError
from scheduler.execution.apply import Applier
from scheduler.execution.watch import FINAL, Watcher
from scheduler.model.execution import (
    AttemptObservation,
    ExpectedAttempt,
    Outcome,
    Phase,
    StopOrder,
)
from scheduler.model.lifecycle import EndCause, JobState
from scheduler.model.ports import ExecutionStore, Executor
from scheduler.model.quantity import AttemptId

log = structlog.get_logger(__name__)

_STRAY_GRACE_S = 10.0
_PASSES_MISSED_MAX = 3
_LOOKS_MAX = 256


class ActionKind(StrEnum):
    """How a difference is mended."""

    RECORD = "record"
    STOP_AGAIN = "stop-again"
    ABANDON = "abandon"
    KILL_STRAY = "kill-stray"
    FORGET = "forget"


DESTRUCTIVE = frozenset({ActionKind.ABANDON, ActionKind.KILL_STRAY})


@dataclass(frozen=True, slots=True)
class Action:
    """One difference to mend.

    Attributes:
        cause: the stop's cause, for STOP_AGAIN.
        grace_s: the grace time it was ordered with, for STOP_AGAIN: saying it again must not
            shorten the time that a job has to save its work.
    """

    kind: ActionKind
    attempt_id: AttemptId
    cause: EndCause | None = None
    grace_s: float = 0.0


def reconcile(
    expected: Sequence[ExpectedAttempt],
    observed: Mapping[AttemptId, AttemptObservation],
    busy: AbstractSet[AttemptId] = frozenset(),
) -> tuple[Action, ...]:
    """What differs, by the table above. Pure; O(n).

    Args:
        expected: every live attempt of the store.
        observed: a look at each of those, and at every other attempt the host knows.
        busy: attempts whose orders are being carried out.

    Returns:
        Expected attempts in their order, then the others by id.
    """
    actions = [
        action
        for attempt in expected
        if (action := _of_expected(attempt, observed[attempt.attempt_id].phase, busy))
    ]
    live = {attempt.attempt_id for attempt in expected}
    for attempt_id in sorted(observed.keys() - live):
        phase = observed[attempt_id].phase
        if phase in FINAL:
            actions.append(Action(ActionKind.FORGET, attempt_id))
        elif phase is not Phase.UNKNOWN and attempt_id not in busy:
            actions.append(Action(ActionKind.KILL_STRAY, attempt_id))
    return tuple(actions)


def _of_expected(
    attempt: ExpectedAttempt, phase: Phase, busy: AbstractSet[AttemptId]
) -> Action | None:
    record = Action(ActionKind.RECORD, attempt.attempt_id)
    if phase in FINAL or phase is Phase.UNKNOWN:
        return record
    if phase is Phase.UNCLAIMED:
        if attempt.launch_claimed and attempt.attempt_id not in busy:
            return Action(ActionKind.ABANDON, attempt.attempt_id)
        return None
    if attempt.stop_cause is not None and attempt.attempt_id not in busy:
        return Action(
            ActionKind.STOP_AGAIN, attempt.attempt_id, attempt.stop_cause, attempt.stop_grace_s
        )
    if phase is Phase.RUNNING and attempt.state != JobState.RUNNING:
        return record
    return None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a pass may do.

    Attributes:
        perform: safe to do now.
        suspected: destructive actions that wait for the next pass to agree.
        alarm: why nothing destructive is done although two passes agree; empty when all is well.
    """

    perform: tuple[Action, ...]
    suspected: frozenset[Action]
    alarm: str = ""


def guard(
    actions: Sequence[Action],
    suspected: AbstractSet[Action],
    live: int,
    kill_ratio_max: float = 0.1,
) -> Verdict:
    """Hold destructive actions back until they are beyond doubt. Pure.

    Args:
        actions: what this pass found.
        suspected: what the pass before held back; empty before the first.
        live: attempts seen alive on the host in this pass.
        kill_ratio_max: largest part of them that one pass may kill; one is always allowed.
    """
    destructive = frozenset(action for action in actions if action.kind in DESTRUCTIVE)
    confirmed = destructive & suspected
    kills = sum(action.kind is ActionKind.KILL_STRAY for action in confirmed)
    alarm = ""
    if kills > max(1, int(live * kill_ratio_max)):
        alarm = (
            f"{kills} of {live} live attempts on this host are unknown to the store; none is"
            " killed: was the store restored from a backup, or the data directory swapped?"
        )
        confirmed = frozenset()
    perform = tuple(a for a in actions if a.kind not in DESTRUCTIVE or a in confirmed)
    return Verdict(perform, destructive - confirmed, alarm)


class Reconciler:
    """Runs passes: once at the start, then every `every_s`, and on demand."""

    def __init__(
        self,
        store: ExecutionStore,
        executor: Executor,
        watcher: Watcher,
        applier: Applier,
        clock: Clock,
        *,
        every_s: float,
    ) -> None:
        """Wire it up.

        Args:
            store: what is expected.
            executor: what there is.
            watcher: records what was seen.
            applier: says which orders are under way.
            clock: for the age of the last pass.
            every_s: time between passes.
        """
        self._store = store
        self._executor = executor
        self._watcher = watcher
        self._applier = applier
        self._clock = clock
        self._every_s = every_s
        self._wake = asyncio.Event()
        self._suspected: frozenset[Action] = frozenset()
        self._trouble = ""
        self._passed_s = clock.monotonic_s()

    @property
    def trouble(self) -> str:
        """What passes could not mend; empty when all is well."""
        silent_s = self._clock.monotonic_s() - self._passed_s
        if not self._trouble and silent_s > _PASSES_MISSED_MAX * self._every_s:
            return f"the host was last compared with the store {silent_s:.0f} s ago"
        return self._trouble

    def wake(self) -> None:
        """Make a pass soon. Call it in the event loop's thread."""
        self._wake.set()

    async def adopt(self) -> None:
        """The first pass: attempts that outlived an earlier daemon are followed again.

        Raises:
            FencedError: another leader has taken over.
            HaversackError: the store does not answer.
        """
        await self.make_pass()

    async def run(self) -> None:
        """Make passes until cancelled.

        Raises:
            FencedError: another leader has taken over.
        """
        while True:
            try:
                async with asyncio.timeout(self._every_s):
                    await self._wake.wait()
            except TimeoutError:
                pass  # the regular pass
            self._wake.clear()
            await self._regular_pass()

    async def _regular_pass(self) -> None:
        try:
            await self.make_pass()
        except FencedError:
            raise
        except Exception as error:
            # The next pass starts from scratch; readiness tells meanwhile.
            log.exception("reconciliation failed")
            self._trouble = f"reconciliation failed: {error}"

    async def make_pass(self) -> None:
        """Compare and mend once. Cost: one look at every live attempt.

        Raises:
            FencedError: another leader has taken over.
            HaversackError: the store does not answer; nothing destructive was done.
        """
        failpoints.hit("reconcile-begun")
        # The host first: whatever it knows by then, the store had committed before.
        known = await self._executor.known()
        expected = await self._store.expected()
        observed = await self._observe([*known, *(attempt.attempt_id for attempt in expected)])
        actions = reconcile(expected, observed, self._applier.busy())
        live = sum(seen.phase in (Phase.STARTING, Phase.RUNNING) for seen in observed.values())
        verdict = guard(actions, self._suspected, live)
        for action in verdict.perform:
            await self._perform(action)
        for attempt in expected:
            if attempt.launch_claimed and not self._watcher.follows(attempt.attempt_id):
                self._watcher.follow(attempt.attempt_id)
        self._suspected = verdict.suspected
        if verdict.alarm:
            log.critical("strays on this host", why=verdict.alarm)
        self._trouble = verdict.alarm
        self._passed_s = self._clock.monotonic_s()

    async def _observe(
        self, attempt_ids: Iterable[AttemptId]
    ) -> dict[AttemptId, AttemptObservation]:
        """A look at each, a few at a time: others have their turn in between."""
        wanted = tuple(dict.fromkeys(attempt_ids))
        observed = {}
        for start in range(0, len(wanted), _LOOKS_MAX):
            for seen in await self._executor.observe(wanted[start : start + _LOOKS_MAX]):
                observed[seen.attempt_id] = seen
            await asyncio.sleep(0)
        return observed

    async def _perform(self, action: Action) -> None:
        if action.kind in (ActionKind.ABANDON, ActionKind.KILL_STRAY):
            log.warning("mending a difference", action=action.kind, attempt=action.attempt_id)
        match action.kind:
            case ActionKind.RECORD:
                self._watcher.follow(action.attempt_id)
            case ActionKind.FORGET:
                await self._executor.forget([action.attempt_id])
            case ActionKind.STOP_AGAIN:
                assert action.cause is not None, "the table gives it one"
                await self._stop(action.attempt_id, action.cause, action.grace_s)
            case ActionKind.ABANDON:
                await self._stop(action.attempt_id, EndCause.INFRASTRUCTURE, 0.0)
                self._watcher.follow(action.attempt_id)
            case ActionKind.KILL_STRAY:
                await self._stop(action.attempt_id, EndCause.LOST, _STRAY_GRACE_S)

    async def _stop(self, attempt_id: AttemptId, cause: EndCause, grace_s: float) -> None:
        order = StopOrder(attempt_id, self._store.epoch, cause, grace_s)
        receipt = await self._executor.stop(order)
        if receipt.outcome is not Outcome.DONE:
            log.warning("not stopped; next pass again", attempt=attempt_id, why=receipt.message)
