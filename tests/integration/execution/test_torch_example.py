"""The guide's DDP example, with a real process group; needs torch (`pip install .[torch]`)."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from support import execution
from support.execution import attempt, launch_order, log_of, stop_order, wait_for, wait_until

from scheduler.execution.local.executor import LocalExecutor
from scheduler.model.job import LauncherKind
from scheduler.model.lifecycle import EndCause

EXAMPLES = Path(__file__).parents[3] / "docs" / "guide" / "examples"
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="torch is not installed"
)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "PATIENCE_S", 120.0)  # importing torch alone takes seconds


def launch(executor: LocalExecutor, seconds: float) -> None:
    executor.launch(
        launch_order(
            sys.executable,  # the python of PATH may have no torch
            "ddp.py",
            tasks=2,
            launcher=LauncherKind.TORCH,
            workdir=str(EXAMPLES),
            env={"DDP_SECONDS": str(seconds)},
        )
    )


def test_two_ranks_train_and_agree(executor: LocalExecutor, data_dir: Path) -> None:
    launch(executor, 0.5)
    assert wait_for(executor, attempt()).cause is EndCause.COMPLETED
    for rank in (0, 1):
        assert "all-reduce of ranks: 1, expected 1" in log_of(data_dir, rank)
        assert "PARAMETERS AGREE on 2 ranks" in log_of(data_dir, rank)


def test_asked_to_stop_all_ranks_end_cleanly(executor: LocalExecutor, data_dir: Path) -> None:
    launch(executor, 600)
    wait_until(lambda: "step" in log_of(data_dir, 0), "training runs")
    executor.stop(stop_order(grace_s=60))
    seen = wait_for(executor, attempt())
    assert seen.cause is EndCause.CANCELLED
    assert [rank.exit_code for rank in seen.ranks] == [0, 0]
    assert "PARAMETERS AGREE" in log_of(data_dir, 1)
