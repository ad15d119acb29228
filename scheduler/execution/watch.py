"""Turns the executor's hints into stored facts: look at the attempt, record what was seen."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from itertools import islice

import structlog

from scheduler import failpoints
from scheduler.clock import Clock
from scheduler.errors import FencedError, HaversackError
from scheduler.execution.backoff import delays_s
from scheduler.model.execution import AttemptObservation, Phase
from scheduler.model.ports import ExecutionStore, Executor
from scheduler.model.quantity import AttemptId

log = structlog.get_logger(__name__)

FINAL = frozenset({Phase.EXITED, Phase.VANISHED, Phase.ABSENT})
"""Phases that prove that nothing of the attempt runs, or ever will."""
_NO_NEWS = frozenset({Phase.UNCLAIMED, Phase.STARTING})
LOOKS_MAX = 4
"""Looks at once."""
_TOGETHER_MAX = 256
"""Attempts looked at, and recorded, together."""


class Watcher:
    """Follows attempts to their stored end. One look at a time per attempt, a few at once."""

    def __init__(
        self,
        store: ExecutionStore,
        executor: Executor,
        clock: Clock,
        *,
        on_freed: Callable[[], None],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Wire it up.

        Args:
            store: where facts go.
            executor: where they come from.
            clock: for the instants of records.
            on_freed: called in the event loop after ends were stored: resources are free.
            sleep: waits before a retry.
        """
        self._store = store
        self._executor = executor
        self._clock = clock
        self._on_freed = on_freed
        self._sleep = sleep
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news = asyncio.Event()
        self._pending: dict[AttemptId, None] = {}
        self._followed: set[AttemptId] = set()
        self._watched: set[AttemptId] = set()
        self._retries: dict[AttemptId, Iterator[float]] = {}
        self._looking: set[AttemptId] = set()
        self._looks: set[asyncio.Task[None]] = set()
        self._waiting: set[asyncio.Task[None]] = set()
        self._fenced: FencedError | None = None

    def follow(self, attempt_id: AttemptId) -> None:
        """Look at the attempt soon, and whenever it changes, until its end is stored.

        Idempotent; call it in the event loop's thread, also before `run`.
        """
        self._followed.add(attempt_id)
        self._pending[attempt_id] = None
        self._news.set()

    def follows(self, attempt_id: AttemptId) -> bool:
        """Whether the attempt is being followed."""
        return attempt_id in self._followed

    async def run(self) -> None:
        """Observe and record until cancelled.

        Raises:
            FencedError: another leader has taken over.
        """
        self._loop = asyncio.get_running_loop()
        try:
            while True:
                await self._news.wait()
                self._news.clear()
                if self._fenced is not None:
                    raise self._fenced
                self._begin_looks()
        finally:
            self._loop = None
            tasks = [*self._looks, *self._waiting]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _begin_looks(self) -> None:
        while len(self._looks) < LOOKS_MAX:  # else the next look that ends brings us back
            turn = (each for each in self._pending if each not in self._looking)
            batch = tuple(islice(turn, _TOGETHER_MAX))
            if not batch:
                return
            for attempt_id in batch:
                del self._pending[attempt_id]
            self._looking.update(batch)
            task = asyncio.create_task(self._look(batch))
            self._looks.add(task)
            task.add_done_callback(partial(self._look_ended, batch))

    def _look_ended(self, batch: Sequence[AttemptId], task: asyncio.Task[None]) -> None:
        self._looks.discard(task)
        self._looking.difference_update(batch)
        self._news.set()

    def _changed(self, attempt_id: AttemptId) -> None:
        """Hint from the executor, on any thread."""
        loop = self._loop
        if loop is not None:
            loop.call_soon_threadsafe(self._look_again, attempt_id)

    def _look_again(self, attempt_id: AttemptId) -> None:
        if attempt_id in self._followed:
            self._pending[attempt_id] = None
            self._news.set()

    async def _look(self, batch: Sequence[AttemptId]) -> None:
        """One look; on trouble another one later, so that no fact is lost."""
        try:
            await self._look_at(batch)
        except FencedError as error:
            self._fenced = error
        except Exception as error:
            if len(batch) > 1 and not isinstance(error, HaversackError):
                for attempt_id in batch:  # whoever spoils it for the others does so alone
                    await self._look((attempt_id,))
                return
            # Whatever it was, these attempts still have to be seen to their end.
            log.exception("not recorded; trying again", attempts=len(batch), first=batch[0])
            for attempt_id in batch:
                self._try_later(attempt_id)

    async def _look_at(self, batch: Sequence[AttemptId]) -> None:
        fresh = [attempt_id for attempt_id in batch if attempt_id not in self._watched]
        if fresh:
            await self._executor.watch(fresh, self._changed)
            self._watched.update(fresh)
        seen = await self._executor.observe(batch)
        await self._take_in([each for each in seen if each.phase not in _NO_NEWS])
        for each in seen:
            if each.phase is not Phase.UNKNOWN:
                self._retries.pop(each.attempt_id, None)
                continue
            log.warning(
                "nobody can tell what the attempt does", attempt=each.attempt_id, why=each.message
            )
            self._try_later(each.attempt_id)

    def _try_later(self, attempt_id: AttemptId) -> None:
        delay_s = next(self._retries.setdefault(attempt_id, delays_s()))
        task = asyncio.create_task(self._look_later(attempt_id, delay_s))
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)

    async def _look_later(self, attempt_id: AttemptId, delay_s: float) -> None:
        await self._sleep(delay_s)
        self._look_again(attempt_id)

    async def _take_in(self, news: Sequence[AttemptObservation]) -> None:
        """Store what was seen, in one write; what has ended is followed no more."""
        if not news:
            return
        _pass_by("seen", news)
        moved = await self._store.record_many(news, self._clock.now())
        _pass_by("stored", news)
        ended = {
            seen.attempt_id: state
            for seen, state in zip(news, moved, strict=True)
            if seen.phase in FINAL
        }
        if not ended:
            return
        await self._executor.forget(tuple(ended))
        for attempt_id in ended:
            self._followed.discard(attempt_id)
            self._watched.discard(attempt_id)
            self._pending.pop(attempt_id, None)
        if any(state is not None for state in ended.values()):
            self._on_freed()


def _pass_by(moment: str, news: Sequence[AttemptObservation]) -> None:
    """Hit the failpoints of starts and ends."""
    for seen in news:
        if seen.phase in FINAL:
            failpoints.hit(f"exit-{moment}")
        elif seen.phase is Phase.RUNNING:
            failpoints.hit(f"start-{moment}")
