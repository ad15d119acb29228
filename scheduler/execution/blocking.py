"""How calls that block are made from the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Blocking(Protocol):
    """Makes blocking calls without holding up the event loop."""

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `call` returns; what it raises goes on to the caller."""
        ...

    def close(self) -> None:
        """No more calls will come; those under way are not waited for."""
        ...


class OnThreads:
    """Threads of one's own: nobody else's slow call can hold them up.

    Args:
        threads: calls at once; further ones wait their turn.
        name: prefix of the threads' names.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(threads, name)

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `call` returns, made on a thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, partial(call, *args, **kwargs))

    def close(self) -> None:
        """No more calls will come; those under way end by themselves."""
        self._pool.shutdown(wait=False)
