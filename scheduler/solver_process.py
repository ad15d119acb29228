"""The daemon's side of the solver worker: feed it, ask it, kill it when it takes too long.

Whatever happens to the worker (a hang, a crash, nonsense on the pipe), `decide` comes back within
its limit with the best plan received so far, and the next call starts a fresh worker with the
full snapshot. Nothing here believes a plan: the cycle verifies it again.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

import structlog

from scheduler.model.plan import Plan
from scheduler.model.ports import DecideResult, Effort
from scheduler.model.quantity import UtcSeconds
from scheduler.model.snapshot import SnapshotDelta
from scheduler.solver_protocol import (
    HEADER,
    Candidate,
    Decide,
    Done,
    Failed,
    Feed,
    FromWorker,
    ProtocolError,
    Ready,
    ToWorker,
    body_bytes,
    frame,
    message_of,
)

log = structlog.get_logger(__name__)

START_LIMIT_S = 60.0
FEED_LIMIT_S = 10.0
ATTEMPTS = 2
TROUBLE_AFTER = 3
"""Requests in a row without any plan after which readiness reports trouble."""


class SolverProcess:
    """One worker process, replaced when it fails. Calls are serialised; none blocks the loop.

    Args:
        arguments: extra command-line arguments of the worker (tests name another decider).
        start_limit_s: time a fresh worker has to import its solver.
    """

    def __init__(
        self, *, arguments: Sequence[str] = (), start_limit_s: float = START_LIMIT_S
    ) -> None:
        self._arguments = tuple(arguments)
        self._start_limit_s = start_limit_s
        self._process: asyncio.subprocess.Process | None = None
        self._ready = False
        self._revision: int | None = None
        self._request = 0
        self._lock = asyncio.Lock()
        self._died_early = False
        self._failures = 0
        self._last_failure = ""
        self.restarts = 0

    @property
    def trouble(self) -> str:
        """Why decisions are not coming, or "" when all is well; for readiness."""
        if self._failures < TROUBLE_AFTER:
            return ""
        return f"the solver worker failed {self._failures} times in a row: {self._last_failure}"

    async def start(self) -> None:
        """Start the worker ahead of its first request; it warms up on its own."""
        async with self._lock:
            await self._spawn()

    async def feed(self, delta: SnapshotDelta, full: Callable[[], SnapshotDelta]) -> None:
        """Keep the worker's snapshot up to date without asking for a decision.

        A worker that cannot take it is killed. A fresh one is started at once, or with the next
        request if this one had never come up.

        Args:
            delta: what changed since the last call.
            full: makes the whole snapshot as a delta, when the worker needs it.
        """
        async with self._lock:
            if self._process is None:
                return  # the next request brings it up to date
            # One that is still importing reads it as soon as it can: then its first answer need
            # not wait for the whole cluster to be sent.
            was_ready = self._ready
            try:
                async with asyncio.timeout(FEED_LIMIT_S if was_ready else self._start_limit_s):
                    await self._feed(delta, full)
            except (OSError, TimeoutError) as error:
                log.warning("feeding the solver worker failed", error=repr(error))
                await (self._replace() if was_ready else self._kill())

    async def decide(
        self,
        delta: SnapshotDelta,
        full: Callable[[], SnapshotDelta],
        *,
        policy: str,
        effort: Effort,
        now: UtcSeconds,
        seed: int,
        hard_limit_s: float,
    ) -> DecideResult:
        """Ask for a decision on the snapshot that `delta` leads to.

        Args:
            delta: what changed since the last call.
            full: makes the whole snapshot as a delta, when the worker is fresh.
            policy: registry name of the queue order.
            effort: deterministic limits of the work.
            now: the cycle's instant.
            seed: the solver's seed.
            hard_limit_s: wall time after which a ready worker is killed.

        Returns:
            the best plan received within the limit. Never raises for a worker's failure.
        """
        async with self._lock:
            for _ in range(ATTEMPTS):
                self._request += 1
                ask = Decide(self._request, policy, effort, now, seed)
                result = await self._ask(ask, delta, full, hard_limit_s)
                if result.plan is not None or not self._died_early:
                    break  # else it had died while idle, or at once: a fresh one may do
            self._note(result)
            return result

    async def _ask(
        self,
        ask: Decide,
        delta: SnapshotDelta,
        full: Callable[[], SnapshotDelta],
        hard_limit_s: float,
    ) -> DecideResult:
        """One request to one worker; a worker that fails is replaced before this returns."""
        best: list[Plan] = []
        self._died_early = False
        try:
            async with asyncio.timeout(self._start_limit_s):
                await self._ensure()
            async with asyncio.timeout(hard_limit_s):
                await self._feed(delta, full)
                await self._send(ask)
                message = await self._collect(best)
        except TimeoutError:
            message = f"no decision within {hard_limit_s:g} s"
        except (OSError, EOFError, ProtocolError) as error:
            self._died_early = not best
            message = f"the worker died: {type(error).__name__}: {error}"
        except BaseException:
            await self._kill()  # the caller gave up half-way: the pipe cannot be used again
            raise
        else:
            return DecideResult(best[-1] if best else None, False, self.restarts, message)
        await self._replace()
        return DecideResult(best[-1] if best else None, True, self.restarts, message)

    async def close(self) -> None:
        """End the worker and wait until it is gone."""
        async with self._lock:
            await self._kill()

    async def _spawn(self) -> None:
        if self._process is not None:
            return
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "scheduler.solver_worker",
            *self._arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # so that a solver it started can be killed with it
        )
        self._ready = False
        self._revision = None

    async def _ensure(self) -> None:
        """A worker that said it is ready.

        Raises:
            EOFError, ProtocolError, OSError: it could not start.
        """
        if self._process is not None and self._process.returncode is not None:
            await self._replace()
        await self._spawn()
        if not self._ready:
            message = await self._receive()
            if not isinstance(message, Ready):
                raise ProtocolError(f"a fresh worker sent a {type(message).__name__}")
            self._ready = True

    async def _feed(self, delta: SnapshotDelta, full: Callable[[], SnapshotDelta]) -> None:
        if self._revision is None or delta.base_revision not in (0, self._revision):
            delta = full()
        await self._send(Feed(delta))
        self._revision = delta.revision

    async def _collect(self, best: list[Plan]) -> str:
        """Receive until the request is over; returns what went wrong, or ""."""
        while True:
            message = await self._receive()
            if isinstance(message, Ready):
                raise ProtocolError("a second Ready")
            if message.request != self._request:
                continue
            if isinstance(message, Candidate):
                best.append(message.plan)
            elif isinstance(message, Failed):
                return message.message
            else:
                return ""

    async def _send(self, message: ToWorker) -> None:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        process.stdin.write(frame(message))
        await process.stdin.drain()

    async def _receive(self) -> FromWorker:
        process = self._process
        assert process is not None
        assert process.stdout is not None
        header = await process.stdout.readexactly(HEADER.size)
        message = message_of(await process.stdout.readexactly(body_bytes(header)))
        if not isinstance(message, (Ready, Candidate, Done, Failed)):
            raise ProtocolError(f"the daemon got a {type(message).__name__}")
        return message

    def _note(self, result: DecideResult) -> None:
        if result.message:
            log.warning(
                "the solver worker failed", failure=result.message, planned=result.plan is not None
            )
        self._failures = self._failures + 1 if result.plan is None else 0
        self._last_failure = result.message

    async def _replace(self) -> None:
        """Kill the worker and start another, which warms up while the daemon goes on."""
        self.restarts += 1
        await self._kill()
        await self._spawn()

    async def _kill(self) -> None:
        process, self._process = self._process, None
        self._ready = False
        self._revision = None
        if process is None:
            return
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()
