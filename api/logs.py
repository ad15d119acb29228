"""Reading and following what ranks print: pieces by byte offset, and streams that say their end.

A follower holds no log in memory beyond one piece. It learns of the job's fate from the store and
of new output by looking at the file four times a second, and only while an attempt is live.
"""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import orjson

from api.dependencies import Context
from api.schemas import LogOut
from api.streams import RECHECK_S, Pulse
from scheduler import service
from scheduler.model.access import Actor
from scheduler.model.execution import LogChunk
from scheduler.model.quantity import AttemptId, JobId
from scheduler.model.view import AttemptView, JobView

PIECE_BYTES = 65_536
_LOOK_EVERY_S = 0.25
_PIECES_PER_TURN = 16
"""A rank that floods gives way to the others after this many pieces."""


def split_text(data: bytes, *, final: bool) -> tuple[str, int]:
    """The text of `data` and how many of its bytes make it.

    A character cut in two by the piece's end is left for the next piece; bytes that are no UTF-8
    become U+FFFD.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(data, final)
    left_over = len(decoder.getstate()[0])
    if not text and left_over:  # a piece too short for one character must still make progress
        return data.decode("utf-8", "replace"), len(data)
    return text, len(data) - left_over


def log_out(chunk: LogChunk, attempt: int, *, final: bool) -> LogOut:
    """Render a piece; `final` when the stream cannot grow any more."""
    text, used = split_text(chunk.data, final=final)
    return {
        "rank": chunk.rank,
        "attempt": attempt,
        "offset": chunk.offset,
        "next_offset": chunk.next_offset - (len(chunk.data) - used),
        "end": chunk.end,
        "data": text,
    }


async def read_piece(
    parts: Context, attempt: AttemptView, rank: int, offset: int, limit: int
) -> LogOut | None:
    """One piece of a rank's log; None when that rank has no log (yet)."""
    try:
        chunk = await asyncio.get_running_loop().run_in_executor(
            parts.log_threads, parts.log_reader.read, attempt.id, rank, offset, limit
        )
    except LookupError:
        return None
    return log_out(chunk, attempt.number, final=chunk.end or not attempt.live)


async def ranks_of(parts: Context, attempt_id: AttemptId) -> Sequence[int]:
    """Ranks that have a log."""
    return await asyncio.get_running_loop().run_in_executor(
        parts.log_threads, parts.log_reader.ranks, attempt_id
    )


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a follower asked for.

    Attributes:
        rank: one rank, or None for all.
        attempt: only this attempt, or None for this and all later ones.
        from_attempt: where to begin when `attempt` is None; None means the latest.
        offsets: where to begin in each rank's stream of the first attempt.
    """

    rank: int | None
    attempt: int | None
    from_attempt: int | None
    offsets: dict[int, int] = field(default_factory=dict)


class Follower:
    """One open log stream.

    Args:
        honoured: tells whether the token behind the stream would still be accepted.
    """

    def __init__(
        self,
        parts: Context,
        actor: Actor,
        job_id: JobId,
        wanted: Wanted,
        honoured: Callable[[], Awaitable[bool]],
    ) -> None:
        self._parts, self._actor, self._job_id = parts, actor, job_id
        self._wanted = wanted
        self._pulse = Pulse(parts.clock, honoured)
        self._number = wanted.attempt if wanted.attempt is not None else wanted.from_attempt
        self._offsets = dict(wanted.offsets)
        self._attempts: tuple[AttemptView, ...] = ()
        self._seen_version = -1
        self._head = 0

    async def _look(self) -> JobView:
        """The job as it stands now; its attempts are read again only if it changed."""
        self._head, job = await self._parts.database.read(
            lambda tx: (
                service.head_revision(tx),
                service.get_job(tx, self._actor, self._job_id),
            )
        )
        if job.version != self._seen_version:
            self._attempts = await self._parts.database.read(
                lambda tx: service.job_attempts(tx, self._actor, self._job_id)
            )
            self._seen_version = job.version
        return job

    def _current(self) -> AttemptView | None:
        if self._number is None:
            current = max(self._attempts, key=lambda attempt: attempt.number, default=None)
        else:
            current = next((a for a in self._attempts if a.number == self._number), None)
        if current is not None:
            self._number = current.number
        return current

    def _successor(self) -> AttemptView | None:
        later = [a for a in self._attempts if self._number is not None and a.number > self._number]
        return min(later, key=lambda attempt: attempt.number, default=None)

    async def records(self) -> AsyncIterator[dict[str, object] | None]:
        """Records for the wire; None is a heartbeat. Ends after the end record.

        It also ends, without that record, when the daemon stops or the token is revoked.
        """
        while not self._parts.commits.closed:
            job = await self._look()
            attempt = self._current()
            caught_up = True
            if attempt is not None:
                async for piece, at_end in self._pieces(attempt):
                    caught_up = at_end
                    if piece is not None:
                        self._pulse.told()
                        yield {**piece}
            if not caught_up:
                continue
            following = None if attempt is not None and attempt.live else self._next(job)
            if following is not None:
                yield following
                if "end" in following:
                    return
                continue
            if self._pulse.heartbeat_due():
                yield None
            if not await self._pulse.may_go_on():
                return
            await self._pause(attempt)

    def _next(self, job: JobView) -> dict[str, object] | None:
        """What follows an attempt that is over: the end, the next attempt, or nothing yet."""
        successor = None if self._wanted.attempt is not None else self._successor()
        if successor is not None:
            self._number, self._offsets = successor.number, {}
            return {"attempt": successor.number}
        pinned_is_over = self._wanted.attempt is not None and self._current() is not None
        if not (job.state.terminal or pinned_is_over):
            return None
        return {
            "end": True,
            "state": job.state,
            "exit_code": job.exit_code,
            "end_cause": job.end_cause,
            "message": job.message,
        }

    async def _pause(self, attempt: AttemptView | None) -> None:
        if attempt is not None and attempt.live:
            await asyncio.sleep(_LOOK_EVERY_S)
            return
        await self._parts.commits.wait_after(self._head, RECHECK_S)
        await asyncio.sleep(_LOOK_EVERY_S / 5)  # a burst of commits is one look

    async def _pieces(self, attempt: AttemptView) -> AsyncIterator[tuple[LogOut | None, bool]]:
        """New pieces of every wanted rank, each with whether all streams are at their end."""
        wanted = self._wanted.rank
        ranks = [wanted] if wanted is not None else await ranks_of(self._parts, attempt.id)
        behind = False
        for rank in ranks:
            for turn in range(_PIECES_PER_TURN):
                offset = self._offsets.get(rank, 0)
                piece = await read_piece(self._parts, attempt, rank, offset, PIECE_BYTES)
                if piece is None or piece["next_offset"] == offset:
                    break
                self._offsets[rank] = piece["next_offset"]
                yield piece, False
                behind = behind or turn == _PIECES_PER_TURN - 1
        yield None, not behind


async def ndjson(records: AsyncIterator[dict[str, object] | None]) -> AsyncIterator[bytes]:
    """One JSON object a line; a heartbeat is an empty line."""
    async for record in records:
        yield b"\n" if record is None else orjson.dumps(record) + b"\n"


async def plain(records: AsyncIterator[dict[str, object] | None]) -> AsyncIterator[bytes]:
    """The text alone, for `curl`."""
    async for record in records:
        if record is not None and "data" in record:
            yield str(record["data"]).encode()
