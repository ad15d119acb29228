"""What the operating system says of running processes."""

from __future__ import annotations

import os
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """CPU seconds that a process and those that it started and that still run have used."""
    folder = Path(f"/proc/{pid}")
    fields = (folder / "stat").read_text().rpartition(")")[2].split()
    children = (folder / "task" / str(pid) / "children").read_text().split()
    user, system = (int(field) for field in fields[11:13])
    return (user + system) / _TICKS_PER_S + sum(cpu_s(int(child)) for child in children)
