"""Writes what a rank prints, up to a cap, and survives a full disk.

Part of the launcher: standard library only.
"""

from __future__ import annotations

import os


class CappedLog:
    """One rank's log file: at most `cap` bytes of output, then one closing line.

    A job never dies, and never blocks, because its output cannot be kept: what does not fit is
    dropped and counted.

    Attributes:
        dropped_bytes: output that is in no file.
    """

    def __init__(self, path: str, cap: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        self._descriptor = os.open(path, flags, 0o600)
        self._left = cap
        self._cap = cap
        self._gap = 0
        self.dropped_bytes = 0

    def write(self, data: bytes) -> None:
        """Keep `data` as far as the cap and the disk allow. Never raises for want of space."""
        if self._left == 0:
            self.dropped_bytes += len(data)
            return
        if self._gap and not self._mend():
            self._lose(len(data))
            return
        kept = self._append(data[: self._left])
        self._left -= kept
        if self._left == 0:
            self.dropped_bytes += len(data) - kept
            start = "" if data[kept - 1 : kept] == b"\n" else "\n"
            self._append(
                f"{start}[haversack] log cap of {self._cap} bytes reached; "
                "later output is dropped\n".encode()
            )
        elif kept < len(data):
            self._lose(len(data) - kept)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _lose(self, count: int) -> None:
        self._gap += count
        self.dropped_bytes += count

    def _mend(self) -> bool:
        note = f"\n[haversack] {self._gap} bytes were dropped here: the log could not be written\n"
        if self._append(note.encode()) < len(note):
            return False
        self._gap = 0
        return True

    def _append(self, data: bytes) -> int:
        written = 0
        while written < len(data):
            try:
                written += os.write(self._descriptor, data[written:])
            except OSError:  # disk full, quota, I/O error: the caller counts what is missing
                break
        return written
