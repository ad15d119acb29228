"""An executor in memory. It passes the same contract test as the one on this host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from scheduler.model.execution import (
    AttemptObservation,
    LaunchOrder,
    Outcome,
    Phase,
    RankExit,
    Receipt,
    StopOrder,
)
from scheduler.model.lifecycle import EndCause
from scheduler.model.quantity import AttemptId, UtcSeconds

_RUNNING = (Phase.STARTING, Phase.RUNNING)


class FakeExecutor:
    """Understands `true`, `false` and everything else, which runs until it is stopped.

    Attributes:
        starts: attempts in the order they were really started.
        stops: stop orders as they came.
        troubles: what the next calls of `launch` and `stop` do instead of their work: raise, or
            answer.
        lost_answers: how many launches work and then answer UNKNOWN.
        unsure: attempts that `observe` cannot tell anything about.
    """

    def __init__(self) -> None:
        self.starts: list[AttemptId] = []
        self.stops: list[StopOrder] = []
        self.troubles: list[Exception | Receipt] = []
        self.lost_answers = 0
        self.unsure: set[AttemptId] = set()
        self._seen: dict[AttemptId, AttemptObservation] = {}
        self._changed: dict[AttemptId, Callable[[AttemptId], None]] = {}
        self._known: set[AttemptId] = set()
        self._epoch = 0

    def launch(self, order: LaunchOrder) -> Receipt:
        if self.troubles:
            return self._trouble()
        receipt = self._launch(order)
        if self.lost_answers:
            self.lost_answers -= 1
            return Receipt(Outcome.UNKNOWN, "the answer was lost")
        return receipt

    def stop(self, order: StopOrder) -> Receipt:
        if self.troubles:
            return self._trouble()
        if order.epoch < self._epoch:
            return Receipt(Outcome.REFUSED, "epoch is over")
        self._epoch = order.epoch
        self.stops.append(order)
        self._known.add(order.attempt_id)
        seen = self._seen.get(order.attempt_id)
        if seen is None:
            self._show(AttemptObservation(order.attempt_id, Phase.ABSENT, message="stopped before"))
        elif seen.phase in _RUNNING:
            self.end(order.attempt_id, order.cause)
        return Receipt(Outcome.DONE)

    def observe(self, attempt_id: AttemptId) -> AttemptObservation:
        if attempt_id in self.unsure:
            return AttemptObservation(attempt_id, Phase.UNKNOWN, message="cannot tell")
        return self._seen.get(attempt_id, AttemptObservation(attempt_id, Phase.UNCLAIMED))

    def watch(self, attempt_id: AttemptId, changed: Callable[[AttemptId], None]) -> None:
        self._changed[attempt_id] = changed
        if attempt_id in self._seen:
            changed(attempt_id)

    def known(self) -> Sequence[AttemptId]:
        return sorted(self._known)

    def forget(self, attempt_id: AttemptId) -> None:
        self._known.discard(attempt_id)
        self._changed.pop(attempt_id, None)

    def end(self, attempt_id: AttemptId, cause: EndCause) -> None:
        """The attempt ends now, for this cause."""
        failure = RankExit(0, 1, None) if cause is EndCause.USER else None
        self._show(
            replace(
                self._seen[attempt_id],
                phase=Phase.EXITED,
                ended_at=UtcSeconds(2.0),
                cause=cause,
                ranks=(failure or RankExit(0, 0, None),),
                first_failure=failure,
            )
        )

    def vanish(self, attempt_id: AttemptId) -> None:
        """Its launcher is killed, and all of it is gone."""
        self._show(replace(self._seen[attempt_id], phase=Phase.VANISHED))

    def run_stray(self, attempt_id: AttemptId) -> None:
        """Something runs here that nobody ordered from this executor."""
        self._known.add(attempt_id)
        self._show(AttemptObservation(attempt_id, Phase.RUNNING, started_at=UtcSeconds(1.0)))

    def _launch(self, order: LaunchOrder) -> Receipt:
        seen = self._seen.get(order.attempt_id)
        if seen is not None:
            absent = seen.phase is Phase.ABSENT
            return Receipt(Outcome.REFUSED if absent else Outcome.DONE, seen.message)
        self._known.add(order.attempt_id)
        if order.epoch < self._epoch:
            self._show(AttemptObservation(order.attempt_id, Phase.ABSENT, message="epoch is over"))
            return Receipt(Outcome.REFUSED, "epoch is over")
        self._epoch = order.epoch
        self.starts.append(order.attempt_id)
        running = AttemptObservation(order.attempt_id, Phase.RUNNING, started_at=UtcSeconds(1.0))
        self._show(running)
        if order.command == ("true",):
            self.end(order.attempt_id, EndCause.COMPLETED)
        elif order.command == ("false",):
            self.end(order.attempt_id, EndCause.USER)
        return Receipt(Outcome.DONE)

    def _trouble(self) -> Receipt:
        trouble = self.troubles.pop(0)
        if isinstance(trouble, Receipt):
            return trouble
        raise trouble

    def _show(self, seen: AttemptObservation) -> None:
        self._seen[seen.attempt_id] = seen
        changed = self._changed.get(seen.attempt_id)
        if changed is not None:
            changed(seen.attempt_id)
