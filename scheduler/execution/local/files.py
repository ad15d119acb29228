"""The folder of one attempt and what stands in it: the whole truth that outlives any process.

Part of the launcher: standard library only.

    <data_dir>/epoch                   highest leader epoch this host has obeyed
    <data_dir>/notify                  FIFO: launchers tell the daemon that something changed
    <data_dir>/master-ports            record locks, one byte a leased MASTER_PORT
    <data_dir>/live/<attempt>          a mark until the attempt's end is stored
    <data_dir>/attempts/<attempt>/
        order.json     what to start; complete
        claim          made once, by whoever starts the attempt or forbids that for ever
        started.json   all ranks were started
        stop.json      the attempt shall end
        exit.json      no process of the attempt is left, and how each rank ended
        vanished.json  no process of it is left, and nobody knows how they ended
        rank-N.log     what rank N printed
        launcher.log   what went wrong in the launcher itself
        work/          working directory of a job that names none
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re

from scheduler.execution.local.process import Identity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_ATTEMPT_ID = re.compile(r"a-[0-9a-z]{16}\Z")
_RANK_LOG = re.compile(r"rank-(0|[1-9][0-9]{0,5})\.log\Z")
_FILE_BYTES_MAX = 64 * 1_048_576


def valid_attempt_id(text: str) -> bool:
    """Whether `text` may become part of a path."""
    return _ATTEMPT_ID.match(text) is not None


def sync_folder(path: str) -> None:
    """Make the names inside a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _write_private(path: str, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        _write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: str, data: bytes) -> None:
    """Replace `path` by `data`: readers see the old or the new content, whole and synced.

    Raises:
        OSError: nothing was changed (disk full, for example).
    """
    temporary = f"{path}.{os.getpid()}.{os.urandom(4).hex()}"
    try:
        _write_private(temporary, data)
        os.rename(temporary, path)  # noqa: PTH104 - pathlib costs the launcher its start time
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)  # noqa: PTH108
        raise
    sync_folder(os.path.dirname(path))  # noqa: PTH120


def write_exclusive(path: str, data: bytes) -> bool:
    """Create `path` with `data` unless it exists; whole content or nothing. False if it existed.

    Raises:
        OSError: nothing was created.
    """
    temporary = f"{path}.{os.getpid()}.{os.urandom(4).hex()}"
    try:
        _write_private(temporary, data)
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)  # noqa: PTH108
    sync_folder(os.path.dirname(path))  # noqa: PTH120
    return True


class Reserved:
    """A file whose disk blocks are taken in advance: a full disk cannot stop its writing."""

    def __init__(self, path: str, size: int) -> None:
        self._path = path
        self._temporary = f"{path}.{os.getpid()}.reserved"
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        self._descriptor = os.open(self._temporary, flags, 0o600)
        try:
            os.posix_fallocate(self._descriptor, 0, size)
        except OSError:
            self.discard()
            raise

    def publish(self, data: bytes) -> None:
        """Write `data` and give the file its name. May be repeated after an error.

        Raises:
            OSError: not published.
        """
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        _write_all(self._descriptor, data)
        os.ftruncate(self._descriptor, len(data))
        os.fsync(self._descriptor)
        os.rename(self._temporary, self._path)  # noqa: PTH104
        sync_folder(os.path.dirname(self._path))  # noqa: PTH120

    def discard(self) -> None:
        """Give the blocks back."""
        os.close(self._descriptor)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._temporary)  # noqa: PTH108


class Claim:
    """Who has the one right to start the attempt.

    Attributes:
        launcher: the launcher that took it; None is a tombstone: it never starts.
        message: why the tombstone stands.
    """

    __slots__ = ("launcher", "message")

    def __init__(self, launcher: Identity | None, message: str) -> None:
        self.launcher = launcher
        self.message = message


class AttemptFolder:
    """Paths and records of one attempt. Cheap to make; keeps no state."""

    def __init__(self, data_dir: str, attempt_id: str) -> None:
        if not valid_attempt_id(attempt_id):
            raise ValueError(f"not an attempt id: {attempt_id!r}")
        self.attempt_id = attempt_id
        self.data_dir = data_dir
        self.path = f"{data_dir}/attempts/{attempt_id}"

    def create(self) -> None:
        """Make the folder and mark the attempt live. Idempotent, durable.

        Raises:
            OSError: the disk is full, or the data directory is not ours.
        """
        for name in ("attempts", "live"):
            os.makedirs(f"{self.data_dir}/{name}", mode=0o700, exist_ok=True)  # noqa: PTH103
        mark = f"{self.data_dir}/live/{self.attempt_id}"
        os.close(os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600))
        os.makedirs(self.path, mode=0o700, exist_ok=True)  # noqa: PTH103
        sync_folder(f"{self.data_dir}/attempts")

    def forget(self) -> None:
        """Take the live mark away; the records and logs stay."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self.data_dir}/live/{self.attempt_id}")  # noqa: PTH108

    def file(self, name: str) -> str:
        """Path of one of the attempt's files."""
        return f"{self.path}/{name}"

    def has(self, name: str) -> bool:
        """Whether the file is there."""
        return os.path.lexists(self.file(name))

    def read(self, name: str) -> dict[str, object] | None:
        """A record as written, or None when it is not there.

        Raises:
            OSError: it is there and cannot be read.
            ValueError: it is not one of our records.
        """
        try:
            descriptor = os.open(self.file(name), os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor, not a path
            document = json.loads(file.read(_FILE_BYTES_MAX))
        if not isinstance(document, dict):
            raise ValueError(f"{self.file(name)} is not a JSON object")  # noqa: TRY004 - our record
        return document

    def write(self, name: str, record: dict[str, object]) -> None:
        """Replace a record atomically and durably.

        Raises:
            OSError: it was not replaced.
        """
        write_atomic(self.file(name), json.dumps(record).encode())

    def claim_for(self, launcher: Identity) -> bool:
        """Take the right to start. False when anyone ever took it, or a tombstone stands.

        Raises:
            OSError: not taken.
        """
        record = {
            "attempt_id": self.attempt_id,
            "pid": launcher.pid,
            "start_ticks": launcher.start_ticks,
            "boot_id": launcher.boot_id,
        }
        return write_exclusive(self.file("claim"), json.dumps(record).encode())

    def forbid(self, message: str) -> bool:
        """Put up a tombstone: the attempt never starts. False when a claim was there already.

        Raises:
            OSError: no tombstone stands.
        """
        record = {"attempt_id": self.attempt_id, "tombstone": True, "message": message}
        return write_exclusive(self.file("claim"), json.dumps(record).encode())

    def claim(self) -> Claim | None:
        """Who took the right to start, or None when nobody did.

        Raises:
            OSError: it cannot be read.
            ValueError: it is not one of our claims.
        """
        record = self.read("claim")
        if record is None:
            return None
        if record.get("tombstone"):
            return Claim(None, str(record.get("message", "")))
        pid, ticks = record.get("pid"), record.get("start_ticks")
        if not isinstance(pid, int) or not isinstance(ticks, int):
            raise ValueError(f"{self.file('claim')} names no process")  # noqa: TRY004 - our record
        return Claim(Identity(pid, ticks, str(record.get("boot_id"))), "")

    def rank_log(self, rank: int) -> str:
        """Path of a rank's log."""
        return self.file(f"rank-{rank}.log")

    def logged_ranks(self) -> list[int]:
        """Ranks that have a log, ascending; empty when the folder is not there."""
        try:
            names = os.listdir(self.path)  # noqa: PTH208
        except FileNotFoundError:
            return []
        return sorted(int(found[1]) for name in names if (found := _RANK_LOG.match(name)))


def live_attempts(data_dir: str) -> list[str]:
    """Attempts whose end is not stored yet, sorted by id."""
    try:
        names = os.listdir(f"{data_dir}/live")  # noqa: PTH208
    except FileNotFoundError:
        return []
    return sorted(filter(valid_attempt_id, names))


@contextlib.contextmanager
def _locked(path: str) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def highest_epoch(data_dir: str, seen: int) -> int:
    """Raise this host's epoch to `seen` and answer the highest ever seen. Durable; I8.

    Raises:
        OSError: the epoch cannot be kept; obey nothing.
    """
    with _locked(f"{data_dir}/epoch") as descriptor:
        known = int(os.pread(descriptor, 32, 0).strip() or b"0")
        if seen > known:
            # Fixed width, one sector, in place: a torn or half-full write cannot lower it.
            os.pwrite(descriptor, b"%020d\n" % seen, 0)
            os.fsync(descriptor)
    return max(known, seen)
