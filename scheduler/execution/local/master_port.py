"""Leases a MASTER_PORT to one attempt, for as long as its launcher lives.

Part of the launcher: standard library only. A lease is a POSIX record lock on one byte of a file:
the kernel drops it with the launcher, ranks do not inherit it, and nothing has to be cleaned up.
"""

from __future__ import annotations

import fcntl
import os
import socket

_FIRST, _LAST = 20_000, 32_767


def candidates(ephemeral: tuple[int, int], start: int) -> list[int]:
    """Ports to try, in order: 20000..32767 without the ephemeral range, from `start` on, cyclic.

    The kernel hands out ephemeral ports to anybody between our probe and rank 0's listen.
    """
    ports = [p for p in range(_FIRST, _LAST + 1) if not ephemeral[0] <= p <= ephemeral[1]]
    if not ports:  # the operator gave it all away: probing is the best that is left
        ports = list(range(_FIRST, _LAST + 1))
    first = start % len(ports)
    return ports[first:] + ports[:first]


def ephemeral_range() -> tuple[int, int]:
    """The kernel's range of ephemeral ports, both ends included."""
    with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as file:  # noqa: PTH123
        low, high = file.read().split()
    return int(low), int(high)


def _free(port: int) -> bool:
    # All addresses, as torch's TCPStore listens; no SO_REUSEADDR, so that a port whose last
    # connections still linger is passed over.
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def lease_master_port(data_dir: str, start: int) -> int:
    """Lease a port that nobody listens on; held until this process ends.

    Args:
        data_dir: the daemon's data directory: leases are unique within it.
        start: any number; spreads attempts (and other daemons) over the range.

    Raises:
        OSError: no port is free, or the lease file cannot be opened.
    """
    path = f"{data_dir}/master-ports"
    # Stays open on purpose: closing any descriptor of the file would drop the lock.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    for port in candidates(ephemeral_range(), start):
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
        except OSError:
            continue
        if _free(port):
            return port
        fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, port)
    os.close(descriptor)
    raise OSError(f"no free port between {_FIRST} and {_LAST} for MASTER_PORT")
