"""Turns the executor's hints into stored facts: look at the attempt, record what was seen."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from functools import partial

import structlog

from scheduler import failpoints
from scheduler.clock import Clock
from scheduler.errors import FencedError
from scheduler.execution.backoff import delays_s
from scheduler.execution.blocking import Blocking
from scheduler.model.execution import AttemptObservation, Phase
from scheduler.model.ports import ExecutionStore, Executor
from scheduler.model.quantity import AttemptId

log = structlog.get_logger(__name__)

FINAL = frozenset({Phase.EXITED, Phase.VANISHED, Phase.ABSENT})
"""Phases that prove that nothing of the attempt runs, or ever will."""
_NO_NEWS = frozenset({Phase.UNCLAIMED, Phase.STARTING})
LOOKS_MAX = 8
"""Looks at once."""


class Watcher:
    """Follows attempts to their stored end. One look at a time per attempt, a few at once."""

    def __init__(
        self,
        store: ExecutionStore,
        executor: Executor,
        clock: Clock,
        *,
        blocking: Blocking,
        on_freed: Callable[[], None],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Wire it up.

        Args:
            store: where facts go.
            executor: where they come from.
            clock: for the instants of records.
            blocking: makes the executor's calls, up to `LOOKS_MAX` at once.
            on_freed: called in the event loop after an end was stored: resources are free.
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
        self._looking: dict[AttemptId, asyncio.Task[None]] = {}
        self._waiting: set[asyncio.Task[None]] = set()
        self._fenced: FencedError | None = None
        self._blocking = blocking

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
            tasks = [*self._looking.values(), *self._waiting]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._blocking.close()

    def _begin_looks(self) -> None:
        for attempt_id in list(self._pending):
            if len(self._looking) >= LOOKS_MAX:
                return  # the next look that ends brings us back
            if attempt_id not in self._looking:
                del self._pending[attempt_id]
                task = asyncio.create_task(self._look(attempt_id))
                self._looking[attempt_id] = task
                task.add_done_callback(partial(self._look_ended, attempt_id))

    def _look_ended(self, attempt_id: AttemptId, _task: asyncio.Task[None]) -> None:
        del self._looking[attempt_id]
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

    async def _look(self, attempt_id: AttemptId) -> None:
        """One look; on trouble another one later, so that no fact is lost."""
        try:
            if attempt_id not in self._watched:
                await self._blocking.run(self._executor.watch, attempt_id, self._changed)
                self._watched.add(attempt_id)
            seen = await self._blocking.run(self._executor.observe, attempt_id)
            await self._take_in(seen)
        except FencedError as error:
            self._fenced = error
            return
        except Exception:
            # Whatever it was, the attempt still has to be seen to its end.
            log.exception("attempt not recorded; trying again", attempt=attempt_id)
        else:
            if seen.phase is not Phase.UNKNOWN:
                self._retries.pop(attempt_id, None)
                return
            log.warning(
                "nobody can tell what the attempt does", attempt=attempt_id, why=seen.message
            )
        delay_s = next(self._retries.setdefault(attempt_id, delays_s()))
        task = asyncio.create_task(self._look_later(attempt_id, delay_s))
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)

    async def _look_later(self, attempt_id: AttemptId, delay_s: float) -> None:
        await self._sleep(delay_s)
        self._look_again(attempt_id)

    async def _take_in(self, seen: AttemptObservation) -> None:
        if seen.phase in _NO_NEWS:
            return
        final = seen.phase in FINAL
        if final:
            failpoints.hit("exit-seen")
        elif seen.phase is Phase.RUNNING:
            failpoints.hit("start-seen")
        moved = await self._store.record(seen, self._clock.now())
        if final:
            failpoints.hit("exit-stored")
            await self._blocking.run(self._executor.forget, seen.attempt_id)
            self._followed.discard(seen.attempt_id)
            self._watched.discard(seen.attempt_id)
            self._pending.pop(seen.attempt_id, None)
            if moved is not None:
                self._on_freed()
        elif seen.phase is Phase.RUNNING:
            failpoints.hit("start-stored")
