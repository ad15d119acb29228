"""A local executor on a folder of its own; what a test leaves running is killed after it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.execution import local_executor

from scheduler.execution.local import process
from scheduler.execution.local.executor import LocalExecutor
from scheduler.execution.local.files import AttemptFolder, live_attempts


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "data"
    yield folder
    for attempt_id in live_attempts(str(folder)):
        claim = None
        with contextlib.suppress(OSError, ValueError):
            claim = AttemptFolder(str(folder), attempt_id).claim()
        if claim is not None and claim.launcher is not None:
            process.kill_all([claim.launcher])
        process.kill_all(process.marked(attempt_id))


@pytest.fixture
def executor(data_dir: Path) -> Iterator[LocalExecutor]:
    one = local_executor(data_dir)
    yield one
    one.close()
