"""Reads what pods print, from the nodes that run them, through the API server.

`pods/log` knows no offsets: it starts at the beginning of what the node has kept, at a time, or so
many lines from the end. So an offset is counted from the beginning, and whoever reads on where he
stopped gets the open stream on which he stopped; only whoever comes anew has the bytes before his
offset sent once more. A node keeps the newest part of a log (10 MiB as kubelets are shipped): a
stream that is open follows through that, but whoever begins after it counts from what is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack, aclosing

import structlog

from scheduler.errors import HaversackError
from scheduler.execution.kubernetes import labels
from scheduler.execution.kubernetes.cluster import Cluster
from scheduler.execution.kubernetes.manifests import CONTAINER
from scheduler.execution.kubernetes.pods import Phase, Pod
from scheduler.execution.kubernetes.raw import count_in
from scheduler.execution.kubernetes.server import ApiServer, RejectedError
from scheduler.model.execution import LogChunk
from scheduler.model.quantity import AttemptId

log = structlog.get_logger(__name__)

_BUFFER_BYTES = 262_144
_CHUNK_BYTES_MAX = 4 * 1_048_576
_SILENCE_S = 600.0
"""A program may print nothing for long; after that the stream is opened anew."""
_FIRST_S = 3.0
_QUIET_S = 0.1
_PIECE_S = 1.0
"""A program that never pauses is read on in the next piece."""
_SKIP_S = 10.0
"""Whoever begins far from the start gets an empty piece, and goes on skipping in the next one."""
_TAILS_MAX = 256
_IDLE_S = 60.0
_READ_S = 30.0


class PodLogs:
    """The `LogReader` of a cluster. Called from threads; asks in the loop.

    Args:
        loop: where requests are made.
        server: the cluster.
        cluster: what it shows.
        idle_s: how long a stream stays open for whoever reads on.
        read_s: how long a reader is kept waiting.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        server: ApiServer,
        cluster: Cluster,
        *,
        idle_s: float = _IDLE_S,
        read_s: float = _READ_S,
    ) -> None:
        self._loop = loop
        self._server = server
        self._cluster = cluster
        self._idle_s = idle_s
        self._read_s = read_s
        self._tails: dict[tuple[str, int], _Tail] = {}

    def ranks(self, attempt_id: AttemptId) -> Sequence[int]:
        """Tasks whose pod has started and is still there, ascending."""
        return sorted(self._pods(attempt_id))

    def read(self, attempt_id: AttemptId, rank: int, offset: int, limit: int) -> LogChunk:
        """Up to `limit` bytes (at most 4 MiB) from `offset`. An offset past the end reads nothing.

        Raises:
            LookupError: there is no such pod, or the node no longer has its log.
            ValueError: a negative offset, or a limit below 1.
        """
        if offset < 0 or limit < 1:
            raise ValueError(f"cannot read {limit} bytes from offset {offset}")
        pod = self._pods(attempt_id).get(rank)
        if pod is None:
            raise LookupError(f"no pod of rank {rank} of attempt {attempt_id} has a log")
        reading = asyncio.run_coroutine_threadsafe(
            self._read(pod, rank, offset, min(limit, _CHUNK_BYTES_MAX)), self._loop
        )
        try:
            return reading.result(self._read_s)
        except TimeoutError:
            reading.cancel()
            log.warning("a log was not read in time", pod=str(pod.ref))
            return LogChunk(rank, offset, offset, b"", end=False)

    def _pods(self, attempt_id: AttemptId) -> dict[int, Pod]:
        found = self._cluster.members(attempt_id).bound
        return {
            count_in(pod.annotation(labels.RANK)) or 0: pod
            for pod in found
            if pod.phase is not Phase.PENDING
        }

    async def _read(self, pod: Pod, rank: int, offset: int, limit: int) -> LogChunk:
        # Asked before the read: what is read after the end is all there will ever be.
        complete = pod.phase.terminal
        tail = self._take((pod.ref.uid, offset))
        patience_s = 0.0
        if tail is None:
            tail, patience_s = _Tail(self._server, pod), _FIRST_S
        with ExitStack() as unless_kept:
            # Also if this is cancelled, as it is when its reader has waited for too long.
            unless_kept.callback(tail.close)
            try:
                data = await tail.take(offset, limit, patience_s)
            except RejectedError as error:
                raise LookupError(f"the log of pod {pod.ref.name} is not there: {error}") from error
            except HaversackError as error:
                log.info("a log is not read", pod=str(pod.ref), why=str(error))
                return LogChunk(rank, offset, offset, b"", end=False)
            at = offset + len(data)
            if tail.usable:
                unless_kept.pop_all()
                self._keep((pod.ref.uid, at), tail)
        return LogChunk(rank, offset, at, data, end=complete and tail.ended)

    def _take(self, key: tuple[str, int]) -> _Tail | None:
        """The stream that was left there, if any; it is the caller's now."""
        tail = self._tails.pop(key, None)
        if tail is not None and tail.expiry is not None:
            tail.expiry.cancel()
        return tail

    def _keep(self, key: tuple[str, int], tail: _Tail) -> None:
        """Leave the stream to whoever reads on from there, for a while."""
        self._let_go(key)
        self._tails[key] = tail
        tail.expiry = self._loop.call_later(self._idle_s, self._let_go, key)
        if len(self._tails) > _TAILS_MAX:
            self._let_go(next(iter(self._tails)))

    def _let_go(self, key: tuple[str, int]) -> None:
        """Nobody reads on from there."""
        tail = self._take(key)
        if tail is not None:
            tail.close()

    async def close(self) -> None:
        """Close all streams."""
        tails = tuple(self._tails.values())
        for key in tuple(self._tails):
            self._let_go(key)
        await asyncio.gather(*(tail.pump for tail in tails), return_exceptions=True)


class _Tail:
    """One log, from its beginning, as it comes.

    Attributes:
        position: offset of the next byte that is not taken.
        expiry: closes it, while it waits for whoever reads on.
        pump: brings the bytes.
    """

    def __init__(self, server: ApiServer, pod: Pod) -> None:
        self.position = 0
        self.expiry: asyncio.TimerHandle | None = None
        self._buffer = bytearray()
        self._failure: HaversackError | None = None
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._over = False
        query = {} if pod.phase.terminal else {"follow": "true"}
        if pod.label(labels.ATTEMPT):  # of our making; others' pods mostly have one container
            query["container"] = CONTAINER
        path = f"/api/v1/namespaces/{pod.ref.namespace}/pods/{pod.ref.name}/log"
        self.pump = asyncio.create_task(self._bring(server, path, query))

    @property
    def usable(self) -> bool:
        """Whether there is, or may come, something to take."""
        return bool(self._buffer) or not self._over

    @property
    def ended(self) -> bool:
        """Whether everything was taken, to the very end."""
        return not self.usable and self._failure is None

    async def _bring(self, server: ApiServer, path: str, query: dict[str, str]) -> None:
        try:
            async with aclosing(server.chunks(path, query, silence_s=_SILENCE_S)) as chunks:
                async for chunk in chunks:
                    self._buffer += chunk
                    self._news.set()
                    while len(self._buffer) >= _BUFFER_BYTES:
                        self._room.clear()
                        await self._room.wait()
        except HaversackError as error:
            self._failure = error
        finally:
            self._over = True
            self._news.set()

    async def take(self, offset: int, limit: int, patience_s: float) -> bytes:
        """Up to `limit` bytes from `offset`, which must not lie before `position`.

        Waits `patience_s` for the first byte, and a moment for each further one, but not for long
        in all; with a patience of 0 it takes what is there. Raises what requests raise, if nothing
        came before.
        """
        data, loop = bytearray(), asyncio.get_running_loop()
        began_at: float | None = None
        while len(data) < limit:
            if not self._buffer and not await self._more(patience_s):
                break
            began_at = loop.time() if began_at is None else began_at
            if loop.time() - began_at >= (_PIECE_S if data else _SKIP_S):
                break
            skip = 0 if data else min(len(self._buffer), offset - self.position)
            count = min(len(self._buffer) - skip, limit - len(data))
            data += self._buffer[skip : skip + count]
            del self._buffer[: skip + count]
            self.position += skip + count
            self._room.set()
            patience_s = min(patience_s, _QUIET_S)
        if self._failure is not None and not data:
            raise self._failure
        return bytes(data)

    async def _more(self, patience_s: float) -> bool:
        """Whether there is something to take."""
        if not self._over and patience_s:
            self._news.clear()
            try:
                async with asyncio.timeout(patience_s):
                    await self._news.wait()
            except TimeoutError:
                return False
        return bool(self._buffer)

    def close(self) -> None:
        """Nobody reads on."""
        self.pump.cancel()
