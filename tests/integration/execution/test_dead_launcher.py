"""A killed launcher: what it leaves behind is found and ended before GPUs are freed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from support.execution import attempt, launch_order, launcher_of, log_of, wait_for, wait_until

from scheduler.execution.local import process
from scheduler.execution.local.executor import LocalExecutor
from scheduler.model.execution import Phase

RUNNING = frozenset({Phase.RUNNING})


def test_a_killed_launcher_takes_its_gang_along(executor: LocalExecutor, data_dir: Path) -> None:
    # The grandchild survives the launcher; the mark in its environment gives it away.
    script = "setsid sleep 600 & echo ready; wait"
    executor.launch(launch_order("sh", "-c", script, tasks=2))
    wait_until(lambda: "ready" in log_of(data_dir, 1), "both ranks run")
    assert len(process.marked(attempt())) == 4
    os.kill(launcher_of(data_dir).pid, signal.SIGKILL)
    seen = wait_for(executor, attempt())
    assert seen.phase is Phase.VANISHED
    assert seen.cause is None
    assert seen.started_at is not None
    assert process.marked(attempt()) == []
    assert executor.observe(attempt()).phase is Phase.VANISHED


def test_a_killed_launcher_takes_along_what_cleaned_its_environment(
    executor: LocalExecutor, data_dir: Path
) -> None:
    script = "env -i sleep 600 & echo $! ready; wait"
    executor.launch(launch_order("sh", "-c", script))
    wait_until(lambda: "ready" in log_of(data_dir, 0), "the child runs")
    wait_for(executor, attempt(), RUNNING)
    child = process.identity_of(int(log_of(data_dir, 0).split()[0]))
    wait_until(lambda: child not in process.marked(attempt()), "it shed its mark")
    os.kill(launcher_of(data_dir).pid, signal.SIGKILL)
    assert wait_for(executor, attempt()).phase is Phase.VANISHED
    assert not child.alive()
