"""The data directory: private to its owner, held by one daemon, not on a network file system."""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path

from scheduler.errors import AlreadyRunningError, ConfigurationError

_NETWORK_FILESYSTEMS = frozenset(
    {
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "fuse.ceph-fuse",
        "fuse.glusterfs",
        "fuse.s3fs",
        "fuse.sshfs",
        "gpfs",
        "lustre",
        "nfs",
        "nfs4",
        "smb3",
        "smbfs",
    }
)


class DataDirectory:
    """The locked data directory; the lock ends with `close` or with the process.

    Attributes:
        path: absolute path.
    """

    def __init__(self, path: Path) -> None:
        """Create the directory if need be and take its lock.

        Raises:
            AlreadyRunningError: another daemon holds it; the message names its pid.
            ConfigurationError: others may enter the directory, or it cannot be made.
        """
        self.path = path.absolute()
        _make_private(self.path)
        self._lock = _lock(self.path)

    def close(self) -> None:
        """Let go of the lock. Idempotent."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _make_private(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.stat()
    except OSError as error:
        raise _unusable(path, error) from error
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise ConfigurationError(
            f"the data directory {path} is open to other users: it holds tokens and job logs",
            hint=f"chmod 700 {path} (owned by the user who runs the daemon), or choose another",
        )


def _unusable(path: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"the data directory {path} cannot be used: {error.strerror}",
        hint="make it writable for the user who runs the daemon, or choose another with --data",
    )


def _lock(path: Path) -> int:
    try:
        # Close-on-exec keeps launchers, which outlive us, from holding the lock.
        descriptor = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unusable(path, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(descriptor)
        raise AlreadyRunningError(
            f"another haversack daemon (pid {holder}) uses {path}",
            hint="stop it first, or choose another directory with --data",
        ) from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def refuse_network_filesystem(path: Path, mountinfo: Path = Path("/proc/self/mountinfo")) -> None:
    """Refuse to keep SQLite where locks and shared memory cannot be trusted.

    Args:
        path: directory of the database, existing.
        mountinfo: the kernel's list of mounts; nothing is checked where there is none.

    Raises:
        ConfigurationError: `path` is on a network file system.
    """
    if not mountinfo.exists():
        return
    resolved = path.resolve()
    kind, longest = "", -1
    for line in mountinfo.read_text().splitlines():
        before, _, after = line.partition(" - ")
        mount_point = Path(before.split(" ")[4].encode().decode("unicode_escape"))
        # A later line covers an earlier one on the same mount point.
        if resolved.is_relative_to(mount_point) and len(mount_point.parts) >= longest:
            kind, longest = after.split(" ", 1)[0], len(mount_point.parts)
    if kind in _NETWORK_FILESYSTEMS:
        raise ConfigurationError(
            f"{path} is on a network file system ({kind}), where SQLite can lose data",
            hint="use a local directory, or a PostgreSQL database with --database",
        )
