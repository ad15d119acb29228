"""This machine's name, processors and memory, as far as this process may use them."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

_KIB_PER_MIB = 1024
_BYTES_PER_MIB = 1_048_576
_NAME_MAX = 63
_MACHINE_ID = re.compile(r"[0-9a-f]{32}")


def host_name() -> str:
    """The host's name reduced to lower-case letters, digits, dots and hyphens; never empty."""
    return sanitized(socket.gethostname())


def sanitized(name: str) -> str:
    """`name` as a node name: at most 63 characters of [a-z0-9.-], `host` when nothing is left."""
    kept = re.sub(r"[^a-z0-9.-]+", "-", name.lower())[:_NAME_MAX].strip(".-")
    return kept or "host"


def host_identity(root: Path = Path("/")) -> str:
    """What stays the same when this machine restarts: its machine id, else its host name.

    Containers mostly have no machine id; there the host name decides. The id itself is secret by
    convention (machine-id(5)), so only a digest of it may leave the host, see `ids.node_id`.
    """
    try:
        machine_id = (root / "etc/machine-id").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return host_name()
    return machine_id if _MACHINE_ID.fullmatch(machine_id) else host_name()


def cpu_milli(root: Path = Path("/")) -> int:
    """Thousandths of a core this process may use: its affinity mask, capped by its cgroups."""
    cores = 1000 * len(os.sched_getaffinity(0))
    for directory in _own_cgroups(root):
        quota, _, period = _first_line(directory / "cpu.max").partition(" ")
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            cores = min(cores, 1000 * int(quota) // int(period))
    return cores


def memory_mib(root: Path = Path("/")) -> int:
    """MiB of host memory this process may use: the machine's, capped by its cgroups.

    Raises:
        OSError: there is no /proc/meminfo: not Linux.
        ValueError: /proc/meminfo has no MemTotal.
    """
    meminfo = (root / "proc/meminfo").read_text(encoding="ascii")
    found = re.search(r"^MemTotal:\s+(\d+) kB$", meminfo, re.MULTILINE)
    if found is None:
        raise ValueError("/proc/meminfo has no MemTotal line")
    total = int(found[1]) // _KIB_PER_MIB
    for directory in _own_cgroups(root):
        limit = _first_line(directory / "memory.max")
        if limit.isdigit():
            total = min(total, int(limit) // _BYTES_PER_MIB)
    return total


def _own_cgroups(root: Path) -> list[Path]:
    """This process's cgroup v2 directory and its ancestors; a limit on any of them binds."""
    mount = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), None)
    if own is None:
        return []
    relative = Path(own)
    return [mount / relative, *(mount / parent for parent in relative.parents)]


def _first_line(path: Path) -> str:
    """The first line of a control file; "" where this kernel or container does not show it."""
    try:
        return path.read_text(encoding="ascii").partition("\n")[0].strip()
    except OSError:
        return ""
