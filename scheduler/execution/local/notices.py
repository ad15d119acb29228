"""Hears when launchers end or have news: one thread for all attempts, asleep until then.

A launcher's end is its pidfd becoming readable, which also works for launchers that an earlier
daemon started. News of a start come as the attempt's id through the FIFO `<data_dir>/notify`.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import threading
from collections.abc import Callable
from pathlib import Path

import structlog

from scheduler.execution.local import process
from scheduler.execution.local.files import valid_attempt_id
from scheduler.model.quantity import AttemptId

log = structlog.get_logger(__name__)

_FIFO_CHUNK = 4096
_LINE_BYTES_MAX = 256


class Notices:
    """Maps kernel events to calls of `changed(attempt_id)`. Thread-safe."""

    def __init__(self, data_dir: Path) -> None:
        """Open the FIFO; the thread starts with the first launcher.

        Raises:
            OSError: the FIFO cannot be made.
        """
        path = data_dir / "notify"
        with contextlib.suppress(FileExistsError):
            os.mkfifo(path, 0o600)
        # Opened for writing too: the last launcher that closes its end must not be an end of file.
        self._fifo = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._fifo, selectors.EVENT_READ)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._lock = threading.Lock()
        self._changed: dict[AttemptId, Callable[[AttemptId], None]] = {}
        self._pidfds: dict[int, tuple[AttemptId, int]] = {}
        self._watched_pids: set[int] = set()
        self._rest = b""
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="launcher-notices", daemon=True)

    def child_spawned(self, attempt_id: AttemptId, pid: int) -> None:
        """Wait for a launcher that this process has just started, and reap it at its end."""
        # Our child, not reaped before this thread does it: the pid cannot be anyone else's.
        self._register(attempt_id, pid, os.pidfd_open(pid))

    def subscribe(self, attempt_id: AttemptId, changed: Callable[[AttemptId], None]) -> None:
        """Call `changed` from now on."""
        with self._lock:
            self._changed[attempt_id] = changed

    def launcher_found(self, attempt_id: AttemptId, launcher: process.Identity) -> bool:
        """Wait for a launcher that a claim names. False when it is not running any more."""
        with self._lock:
            if launcher.pid in self._watched_pids:
                return launcher.alive()
        pidfd = process.open_pidfd(launcher)
        if pidfd is None:
            return False
        self._register(attempt_id, launcher.pid, pidfd)
        return True

    def unsubscribe(self, attempt_id: AttemptId) -> None:
        """No more calls for this attempt; its launcher is still reaped."""
        with self._lock:
            self._changed.pop(attempt_id, None)

    def close(self) -> None:
        """Stop hearing. Launchers go on."""
        with self._lock:
            self._closed = True
        os.write(self._wake_write, b"\0")
        if self._thread.ident is not None:
            self._thread.join()
        self._selector.close()
        for descriptor in (self._fifo, self._wake_read, self._wake_write, *self._pidfds):
            os.close(descriptor)

    def _register(self, attempt_id: AttemptId, pid: int, pidfd: int) -> None:
        with self._lock:
            if self._closed or pid in self._watched_pids:
                os.close(pidfd)
                return
            self._pidfds[pidfd] = (attempt_id, pid)
            self._watched_pids.add(pid)
            self._selector.register(pidfd, selectors.EVENT_READ)  # epoll allows it while waiting
            if self._thread.ident is None:
                self._thread.start()

    def _run(self) -> None:
        while True:
            ready = [key.fd for key, _ in self._selector.select()]
            with self._lock:
                if self._closed:
                    return
            changed: list[AttemptId] = []
            for descriptor in ready:
                if descriptor == self._fifo:
                    changed += self._read_news()
                elif descriptor in self._pidfds:
                    changed.append(self._launcher_ended(descriptor))
            for attempt_id in dict.fromkeys(changed):
                self._tell(attempt_id)

    def _tell(self, attempt_id: AttemptId) -> None:
        with self._lock:
            changed = self._changed.get(attempt_id)
        if changed is None:
            return
        try:
            changed(attempt_id)
        except RuntimeError as error:  # the event loop behind it has closed: shutting down
            log.info("news not delivered", attempt=attempt_id, why=str(error))

    def _read_news(self) -> list[AttemptId]:
        # Any process of our user may write here: lines are checked, bounded, and only hints.
        try:
            data = self._rest + os.read(self._fifo, _FIFO_CHUNK)
        except BlockingIOError:
            return []
        *lines, rest = data.split(b"\n")
        self._rest = rest if len(rest) <= _LINE_BYTES_MAX else b""
        names = [line.decode("ascii", "replace") for line in lines]
        return [AttemptId(name) for name in names if valid_attempt_id(name)]

    def _launcher_ended(self, pidfd: int) -> AttemptId:
        with self._lock:
            attempt_id, pid = self._pidfds.pop(pidfd)
            self._selector.unregister(pidfd)
            with contextlib.suppress(ChildProcessError):  # an earlier daemon's child
                os.waitpid(pid, os.WNOHANG)
            self._watched_pids.discard(pid)
        os.close(pidfd)
        return attempt_id
