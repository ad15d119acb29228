"""Where the public workloads lie, if this checkout has them beside it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def trace(name: str) -> Path:
    """A file of the public traces; skips, and says so, where it is absent."""
    folder = os.environ.get("HAVERSACK_TRACES")
    if not folder:
        pytest.skip("SKIPPED: no public traces; set HAVERSACK_TRACES")
    path = Path(folder) / name
    if not path.exists():
        pytest.skip(f"SKIPPED: HAVERSACK_TRACES has no {name}")
    return path
