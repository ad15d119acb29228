"""GPU tests compare the whole host with what one daemon did: never two of them at once."""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """Wait until no other worker of a parallel run uses the GPUs."""
    with (Path(tempfile.gettempdir()) / "haversack-gpu-tests.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
