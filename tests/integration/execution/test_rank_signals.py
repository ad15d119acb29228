from __future__ import annotations

import signal

from support.execution import attempt, launch_order, wait_for

from scheduler.execution.local.executor import LocalExecutor
from scheduler.model.execution import RankExit


def test_signals_that_the_daemon_ignores_still_reach_a_rank(executor: LocalExecutor) -> None:
    before = signal.signal(signal.SIGQUIT, signal.SIG_IGN)
    try:
        executor.launch(launch_order("sh", "-c", "trap 'exit 9' QUIT; kill -QUIT $$; exit 0"))
    finally:
        signal.signal(signal.SIGQUIT, before)
    assert wait_for(executor, attempt()).first_failure == RankExit(0, 9, None)
