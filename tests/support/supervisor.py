"""What a service manager and its operator do: start the daemon again, kill what hangs."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from support.daemon import DaemonProcess

HANG_S = 1.5
"""How long something may hang before it is killed."""
STARTS_MAX = 6


class Supervisor:
    """Keeps one daemon up while the context lasts.

    Attributes:
        endings: how the daemons ended that ended: exit status, last words.
        fired: lines of the failpoints' log, `<name> <kind> <pid>`.
    """

    def __init__(self, daemon: DaemonProcess, failpoint_log: Path, failpoints: str) -> None:
        self._daemon = daemon
        self._log = failpoint_log
        self._failpoints = failpoints
        self.endings: list[tuple[int, str]] = []
        self.fired: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._daemon.settings = {
            **self._daemon.settings,
            "FAILPOINTS_LOG": str(self._log),
        }
        self._daemon.start(failpoints=self._failpoints, wait=False)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self._see_to_hangs()
            process = self._daemon.process
            assert process is not None
            status = process.poll()
            if status is not None:
                self.endings.append((status, self._daemon.log_tail()[-600:]))
                if self._daemon.starts == STARTS_MAX:
                    return
                self._daemon.start(wait=False)

    def _see_to_hangs(self) -> None:
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        for line in lines[len(self.fired) :]:
            name, kind, pid = line.split()
            if kind == "hang":
                time.sleep(HANG_S)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            self.fired.append(f"{name} {kind}")
