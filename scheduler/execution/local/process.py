"""Who a process is, beyond its recyclable pid, and how to be sure that it is gone.

Part of the launcher: standard library only. Linux 5.4 or newer (pidfd, subreaper).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Sequence

MARKER = "HAVERSACK_ATTEMPT_ID"
"""Environment variable by which every process of an attempt is found again."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_STATE, _PARENT, _SESSION, _START_TICKS = (
    0,
    1,
    3,
    19,
)  # positions after the command name in /proc/<pid>/stat
_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, argument: int) -> None:
    if _libc.prctl(option, argument, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}): {os.strerror(code)}")


def become_subreaper() -> None:
    """Make every orphan among our descendants our child, so that `waitpid` sees all of them die.

    Raises:
        OSError: the kernel refuses.
    """
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int) -> None:
    """Have the kernel SIGKILL this process when the thread that forked it dies.

    Ends the process at once if `parent` is already gone: the kernel would never tell us.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def forbid_new_privileges() -> None:
    """No setuid program may lift this process, or its children, above our power to kill them."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


class Stat:
    """The fields of /proc/<pid>/stat that tell who a process is."""

    __slots__ = ("parent", "pid", "session", "start_ticks", "zombie")

    def __init__(
        self, pid: int, parent: int, session: int, start_ticks: int, *, zombie: bool
    ) -> None:
        self.pid = pid
        self.parent = parent
        self.session = session
        self.start_ticks = start_ticks
        self.zombie = zombie


def stat(pid: int) -> Stat | None:
    """What the kernel says of `pid`; None when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:  # noqa: PTH123 - hot path
            text = file.read(4096)
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text[text.rindex(b")") + 2 :].split()
    return Stat(
        pid,
        int(fields[_PARENT]),
        int(fields[_SESSION]),
        int(fields[_START_TICKS]),
        zombie=fields[_STATE] in (b"Z", b"X"),
    )


def boot_id() -> str:
    """The kernel's name for this boot; pids and start ticks mean nothing across boots."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:  # noqa: PTH123
        return file.read().strip()


class Identity:
    """A process named so that no later process can be mistaken for it.

    Attributes:
        pid: process id.
        start_ticks: clock ticks from boot to the start of the process.
        boot_id: the boot that `start_ticks` counts from.
    """

    __slots__ = ("boot_id", "pid", "start_ticks")

    def __init__(self, pid: int, start_ticks: int, boot: str) -> None:
        self.pid = pid
        self.start_ticks = start_ticks
        self.boot_id = boot

    def alive(self) -> bool:
        """Whether this very process still runs; a zombie does not."""
        if self.boot_id != boot_id():
            return False
        found = stat(self.pid)
        return found is not None and not found.zombie and found.start_ticks == self.start_ticks


def identity_of(pid: int) -> Identity:
    """The identity of a running process.

    Raises:
        ProcessLookupError: no such process.
    """
    found = stat(pid)
    if found is None:
        raise ProcessLookupError(f"no process {pid}")
    return Identity(pid, found.start_ticks, boot_id())


def open_pidfd(identity: Identity) -> int | None:
    """A pidfd of exactly this process, or None when it is gone. The caller closes it."""
    try:
        pidfd = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return None
    # Only now is the pid pinned: whoever holds it at this moment is whom the pidfd names.
    if identity.alive():
        return pidfd
    os.close(pidfd)
    return None


def send(identity: Identity, number: int) -> bool:
    """Signal exactly this process. False when it is gone.

    Raises:
        PermissionError: the process is out of our power.
    """
    pidfd = open_pidfd(identity)
    if pidfd is None:
        return False
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(pidfd)
    return True


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208 - hot path


def descendants(root: int) -> list[Identity]:
    """Every living process below `root`, itself excluded. One pass over /proc.

    A process that forks meanwhile may hide a child: callers repeat until nothing is left.
    """
    boot = boot_id()
    children: dict[int, list[Stat]] = {}
    for pid in _pids():
        found = stat(pid)
        if found is not None:
            children.setdefault(found.parent, []).append(found)
    below: list[Identity] = []
    parents = [root]
    while parents:
        for child in children.get(parents.pop(), ()):
            parents.append(child.pid)
            if not child.zombie:
                below.append(Identity(child.pid, child.start_ticks, boot))
    return below


def marked(attempt_id: str, leaders: Sequence[Identity] = ()) -> list[Identity]:
    """Every living process that belongs to the attempt by its environment or its session.

    One pass over /proc. A process that cleaned its environment is still known by its session; one
    that also left the session is not found (only the launcher, while it lives, holds on to it).
    Processes of other users are not readable and not ours: ranks cannot change their user.

    Args:
        attempt_id: named by the environment the ranks were started with.
        leaders: the ranks, each the leader of its own session.
    """
    wanted = f"{MARKER}={attempt_id}".encode()
    boot = boot_id()
    sessions = {leader.pid for leader in leaders if not _recycled(leader)}
    found: list[Identity] = []
    for pid in _pids():
        known = stat(pid)
        if known is None or known.zombie:
            continue
        if known.session in sessions or wanted in _environment(pid):
            found.append(Identity(pid, known.start_ticks, boot))
    return found


def _recycled(leader: Identity) -> bool:
    """Whether the pid went to a later process: then nothing of the old session is left.

    The kernel gives a pid away again only when no process has it as its session.
    """
    found = stat(leader.pid)
    return found is not None and found.start_ticks != leader.start_ticks


def _environment(pid: int) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/environ", "rb", buffering=0) as file:  # noqa: PTH123
            return file.readall().split(b"\0")
    except OSError:  # gone meanwhile, or not ours to read
        return []


def kill_all(identities: list[Identity]) -> None:
    """SIGKILL each of them; those already gone or out of our power are passed over."""
    for identity in identities:
        with contextlib.suppress(PermissionError):
            send(identity, signal.SIGKILL)
