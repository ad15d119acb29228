"""The store as execution sees it, in memory: enough of the lifecycle to tell right from wrong."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from scheduler.errors import FencedError, StorageError
from scheduler.model.execution import (
    AttemptObservation,
    ExpectedAttempt,
    Intent,
    IntentKind,
    LaunchOrder,
    Outcome,
    Phase,
    Receipt,
    StopOrder,
)
from scheduler.model.lifecycle import JobState
from scheduler.model.quantity import AttemptId, IntentId, JobId, UtcSeconds

_FINAL = (Phase.EXITED, Phase.VANISHED, Phase.ABSENT)


async def _at_once() -> None:
    """Wait for nothing."""


class FakeExecutionStore:
    """Holds intents and live attempts.

    Attributes:
        settled: receipts by intent.
        claims: how many intents each claim took, in order.
        settlements: intents of each settlement that was asked for, in order.
        answering: waited for by each settlement before it is kept.
        poisoned: intents that cannot be settled, nor any that are settled with them; and attempts
            of which nothing can be recorded, nor of any that are recorded with them.
        recorded: every observation that reached us, in order.
        storage_errors: how many of the next calls fail as on a full disk.
        lost_claims: how many claims are committed and then not answered.
        fenced: whether another leader has taken over.
    """

    def __init__(self) -> None:
        self.settled: dict[IntentId, Receipt] = {}
        self.claims: list[int] = []
        self.settlements: list[tuple[IntentId, ...]] = []
        self.answering: Callable[[], Awaitable[None]] = _at_once
        self.poisoned: set[IntentId | AttemptId] = set()
        self.recorded: list[AttemptObservation] = []
        self.storage_errors = 0
        self.lost_claims = 0
        self.fenced = False
        self.live: dict[AttemptId, JobState] = {}
        self._pending: list[Intent] = []
        self._claimed: list[Intent] = []
        self._stops: dict[AttemptId, StopOrder] = {}

    @property
    def epoch(self) -> int:
        return 1

    def add_launch(self, order: LaunchOrder, *, claimed: bool = False) -> IntentId:
        """Commit a launch; `claimed` as if a daemon had died after claiming it."""
        intent = Intent(IntentId(f"launch-{order.attempt_id}"), IntentKind.LAUNCH, order)
        (self._claimed if claimed else self._pending).append(intent)
        self.live[order.attempt_id] = JobState.LAUNCHING if claimed else JobState.ASSIGNED
        return intent.id

    def add_stop(self, order: StopOrder) -> IntentId:
        """Commit a stop."""
        intent = Intent(IntentId(f"stop-{order.attempt_id}"), IntentKind.STOP, order)
        self._pending.append(intent)
        self._stops[order.attempt_id] = order
        if order.attempt_id in self.live:
            self.live[order.attempt_id] = JobState.STOPPING
        return intent.id

    async def claim_intents(
        self, kinds: Sequence[IntentKind], limit: int, now: UtcSeconds
    ) -> Sequence[Intent]:
        self._check()
        taken = [intent for intent in self._pending if intent.kind in kinds][:limit]
        self.claims.append(len(taken))
        for intent in taken:
            self._pending.remove(intent)
            self._claimed.append(intent)
            if intent.kind is IntentKind.LAUNCH:
                self.live[intent.order.attempt_id] = JobState.LAUNCHING
        if taken and self.lost_claims:
            self.lost_claims -= 1
            raise StorageError("the connection broke after the commit")
        return taken

    async def unsettled(self) -> Sequence[Intent]:
        self._check()
        return list(self._claimed)

    async def settle_many(
        self, receipts: Sequence[tuple[IntentId, Receipt]], now: UtcSeconds
    ) -> None:
        self._check()
        self.settlements.append(tuple(intent_id for intent_id, _ in receipts))
        await self.answering()
        if self.poisoned & {intent_id for intent_id, _ in receipts}:
            raise RuntimeError("the books contradict themselves")
        for intent_id, receipt in receipts:
            self.settled[intent_id] = receipt
            for intent in [one for one in self._claimed if one.id == intent_id]:
                self._claimed.remove(intent)
                if receipt.outcome is Outcome.REFUSED:
                    self.live.pop(intent.order.attempt_id, None)

    async def record_many(
        self, observations: Sequence[AttemptObservation], now: UtcSeconds
    ) -> Sequence[JobState | None]:
        self._check()
        if self.poisoned & {seen.attempt_id for seen in observations}:
            raise RuntimeError("the books contradict themselves")
        return [self._record(seen) for seen in observations]

    def _record(self, observation: AttemptObservation) -> JobState | None:
        self.recorded.append(observation)
        if observation.attempt_id not in self.live:
            return None
        if observation.phase in _FINAL:
            del self.live[observation.attempt_id]
            return JobState.SUCCEEDED
        becomes = {Phase.RUNNING: JobState.RUNNING, Phase.UNKNOWN: JobState.SUSPECT}
        self.live[observation.attempt_id] = becomes[observation.phase]
        return self.live[observation.attempt_id]

    async def expected(self) -> Sequence[ExpectedAttempt]:
        self._check()
        return [self._expected(attempt_id, state) for attempt_id, state in self.live.items()]

    def _expected(self, attempt_id: AttemptId, state: JobState) -> ExpectedAttempt:
        stop = self._stops.get(attempt_id)
        return ExpectedAttempt(
            attempt_id=attempt_id,
            job_id=JobId("j-0000000000000001"),
            state=state,
            epoch=1,
            launch_claimed=state is not JobState.ASSIGNED,
            stop_cause=None if stop is None else stop.cause,
            stop_grace_s=0.0 if stop is None else stop.grace_s,
        )

    def phases(self, attempt_id: AttemptId) -> list[Phase]:
        """What was recorded of one attempt, in order."""
        return [seen.phase for seen in self.recorded if seen.attempt_id == attempt_id]

    def _check(self) -> None:
        if self.fenced:
            raise FencedError("another leader has taken over")
        if self.storage_errors:
            self.storage_errors -= 1
            raise StorageError("disk full")
