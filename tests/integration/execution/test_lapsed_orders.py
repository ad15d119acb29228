"""A launcher that comes up after its leader's lease starts nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.execution import attempt, launch_order, wait_for

from scheduler.clock import since_boot_s
from scheduler.execution.local.executor import LocalExecutor
from scheduler.model.execution import Outcome, Phase
from scheduler.model.lifecycle import EndCause


def test_an_order_that_has_lapsed_starts_nothing_and_may_be_repeated(data_dir: Path) -> None:
    limits: dict[str, Any] = {"env_allow": ("PATH",), "log_bytes_max": 4096, "open_files_max": 64}
    late = LocalExecutor(data_dir, launch_before_s=since_boot_s, **limits)
    receipt = late.launch(launch_order("true"))
    assert receipt.outcome is Outcome.UNKNOWN
    assert "lease ran out" in receipt.message
    assert late.observe(attempt()).phase is Phase.UNCLAIMED
    late.close()
    leading = LocalExecutor(data_dir, launch_before_s=lambda: since_boot_s() + 60, **limits)
    assert leading.launch(launch_order("true")).outcome is Outcome.DONE
    assert wait_for(leading, attempt()).cause is EndCause.COMPLETED
    leading.close()
