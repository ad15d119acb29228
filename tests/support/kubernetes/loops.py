"""Runs what needs an event loop beside tests that block."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import TypeVar

T = TypeVar("T")


class LoopThread:
    """An event loop in a thread of its own."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def do(self, act: Callable[[], T]) -> T:
        """Run a plain function in the loop, and wait for what it returns."""

        async def acting() -> T:
            return act()

        return asyncio.run_coroutine_threadsafe(acting(), self._loop).result()

    @contextmanager
    def inside(self, manager: AbstractAsyncContextManager[T]) -> Iterator[T]:
        """Keep an asynchronous context manager open in the loop."""

        async def leave() -> None:
            await manager.__aexit__(None, None, None)

        async def enter() -> T:
            return await manager.__aenter__()

        entered = asyncio.run_coroutine_threadsafe(enter(), self._loop).result()
        try:
            yield entered
        finally:
            asyncio.run_coroutine_threadsafe(leave(), self._loop).result()


@contextmanager
def loop_thread(name: str) -> Iterator[LoopThread]:
    """A loop that runs until the end of the block."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name=name, daemon=True)
    thread.start()
    try:
        yield LoopThread(loop)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
