"""The `Executor` port over an executor whose calls block: each is made on a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from scheduler.model.execution import AttemptObservation, LaunchOrder, Receipt, StopOrder
from scheduler.model.ports import BlockingExecutor
from scheduler.model.quantity import AttemptId

P = ParamSpec("P")
T = TypeVar("T")

_LOOKS_MAX = 4


class OnThreads:
    """Makes the calls of a blocking executor without holding up the event loop.

    Orders and looks have threads of their own, so that slow orders hold up no look.

    Args:
        executor: makes the calls.
        launches_max: launches that are asked for at once. There are threads for as many stops, and
            for one more: a slow launch must not hold up a stop.
    """

    def __init__(self, executor: BlockingExecutor, *, launches_max: int) -> None:
        self._executor = executor
        self._orders = ThreadPoolExecutor(2 * launches_max + 1, "orders")
        self._looks = ThreadPoolExecutor(_LOOKS_MAX, "looks")

    async def launch(self, order: LaunchOrder) -> Receipt:
        """As the port."""
        return await _made(self._orders, self._executor.launch, order)

    async def stop(self, order: StopOrder) -> Receipt:
        """As the port."""
        return await _made(self._orders, self._executor.stop, order)

    async def observe(self, attempt_ids: Sequence[AttemptId]) -> Sequence[AttemptObservation]:
        """As the port; one after the other, on one thread."""
        return await _made(self._looks, _each, self._executor.observe, attempt_ids)

    async def watch(
        self, attempt_ids: Sequence[AttemptId], changed: Callable[[AttemptId], None]
    ) -> None:
        """As the port."""
        await _made(
            self._looks, _each, lambda each: self._executor.watch(each, changed), attempt_ids
        )

    async def known(self) -> Sequence[AttemptId]:
        """As the port."""
        return await _made(self._looks, self._executor.known)

    async def forget(self, attempt_ids: Sequence[AttemptId]) -> None:
        """As the port."""
        await _made(self._looks, _each, self._executor.forget, attempt_ids)

    def close(self) -> None:
        """No more calls will come; those under way end by themselves."""
        self._orders.shutdown(wait=False)
        self._looks.shutdown(wait=False)


async def _made(
    pool: ThreadPoolExecutor, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """What `call` returns, made on a thread of the pool."""
    return await asyncio.get_running_loop().run_in_executor(pool, partial(call, *args, **kwargs))


def _each(call: Callable[[AttemptId], T], attempt_ids: Sequence[AttemptId]) -> tuple[T, ...]:
    return tuple(map(call, attempt_ids))
