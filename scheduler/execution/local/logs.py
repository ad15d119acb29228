"""Reads what ranks printed, in bounded pieces, never through a link."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from scheduler.execution.local.files import AttemptFolder, valid_attempt_id
from scheduler.execution.local.observation import ended
from scheduler.model.execution import LogChunk
from scheduler.model.quantity import AttemptId

_CHUNK_BYTES_MAX = 4 * 1_048_576


class LocalLogReader:
    """The LogReader port for attempts on this host. Paths are made from checked ids only."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = str(data_dir.resolve())

    def ranks(self, attempt_id: AttemptId) -> Sequence[int]:
        """Ranks that have a log, ascending; empty before the start, and for a strange id."""
        if not valid_attempt_id(attempt_id):
            return []
        return AttemptFolder(self._data_dir, attempt_id).logged_ranks()

    def read(self, attempt_id: AttemptId, rank: int, offset: int, limit: int) -> LogChunk:
        """Up to `limit` bytes (at most 4 MiB) from `offset`. An offset past the end reads nothing.

        Raises:
            LookupError: no such rank or attempt on this host.
            ValueError: a negative offset, or a limit below 1.
        """
        if offset < 0 or limit < 1:
            raise ValueError(f"cannot read {limit} bytes from offset {offset}")
        if not valid_attempt_id(attempt_id) or rank < 0:
            raise LookupError(f"no log of rank {rank} of attempt {attempt_id!r}")
        folder = AttemptFolder(self._data_dir, attempt_id)
        # Asked before the read: what is read after the end is all there will ever be.
        complete = ended(folder)
        try:
            descriptor = os.open(folder.rank_log(rank), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            raise LookupError(f"no log of rank {rank} of attempt {attempt_id}") from error
        try:
            data = os.pread(descriptor, min(limit, _CHUNK_BYTES_MAX), offset)
            size = os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)
        next_offset = offset + len(data)
        return LogChunk(rank, offset, next_offset, data, end=complete and next_offset >= size)
