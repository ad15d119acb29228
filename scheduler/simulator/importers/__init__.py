"""Readers of public workload formats; a new format is one file here and one line below."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from scheduler.simulator.importers import acme, haversack, helios, openb, philly, plain_csv, swf
from scheduler.simulator.importers.records import Reading
from scheduler.simulator.workload import Workload

Reader = Callable[[Path, Reading], Workload]
"""Reads a file.

Raises NotFoundError without one, InvalidRequestError for a bad one.
"""

READERS: Mapping[str, Reader] = {
    "csv": plain_csv.read,
    "openb": openb.read,
    "philly": philly.read,
    "helios": helios.read,
    "acme": acme.read,
    "swf": swf.read,
    "haversack": haversack.read,
}
"""What `--format` may name."""

__all__ = ["READERS", "Reader", "Reading"]
