"""Orders and observations for tests, and patience with real processes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from scheduler.execution.local import process
from scheduler.execution.local.executor import LocalExecutor
from scheduler.execution.local.files import AttemptFolder
from scheduler.model.execution import (
    AttemptObservation,
    LaunchOrder,
    LaunchTask,
    Phase,
    StopOrder,
)
from scheduler.model.job import LauncherKind
from scheduler.model.lifecycle import EndCause
from scheduler.model.ports import BlockingExecutor
from scheduler.model.quantity import AttemptId, GpuId, JobId, NodeId, TenantId

PATIENCE_S = 20.0
ENDED = frozenset({Phase.EXITED, Phase.VANISHED, Phase.ABSENT})


def attempt(number: int = 1) -> AttemptId:
    """An attempt id of this test process alone: the host's processes are told apart by it."""
    return AttemptId(f"a-{os.getpid():010d}{number:06d}")


def launch_order(
    *command: str,
    attempt_id: AttemptId | None = None,
    tasks: int = 1,
    gpus: Sequence[Sequence[str]] = (),
    simulated: bool = False,
    processes: int = 1,
    launcher: LauncherKind = LauncherKind.NONE,
    env: dict[str, str] | None = None,
    epoch: int = 1,
    number: int = 1,
    grace_s: float = 5.0,
    max_runtime_s: float | None = None,
    workdir: str | None = None,
    cpu_milli: int = 0,
    memory_mib: int = 0,
    image: str | None = None,
    job_name: str = "test",
) -> LaunchOrder:
    return LaunchOrder(
        attempt_id=attempt() if attempt_id is None else attempt_id,
        job_id=JobId("j-0000000000000001"),
        tenant=TenantId("default"),
        job_name=job_name,
        number=number,
        epoch=epoch,
        tasks=tuple(
            LaunchTask(
                task_index=index,
                node_id=NodeId("n-0000000000000001"),
                node_name="box",
                gpu_ids=tuple(GpuId(gpu) for gpu in (gpus[index] if gpus else ())),
                simulated=simulated,
                cpu_milli=cpu_milli,
                memory_mib=memory_mib,
            )
            for index in range(tasks)
        ),
        processes=processes,
        command=command or ("true",),
        env=tuple(sorted((env or {}).items())),
        launcher=launcher,
        stop_signal="SIGTERM",
        grace_s=grace_s,
        max_runtime_s=max_runtime_s,
        workdir=workdir,
        image=image,
    )


def stop_order(
    attempt_id: AttemptId | None = None,
    cause: EndCause = EndCause.CANCELLED,
    *,
    grace_s: float = 5.0,
    epoch: int = 1,
) -> StopOrder:
    return StopOrder(attempt() if attempt_id is None else attempt_id, epoch, cause, grace_s)


def local_executor(data_dir: Path, log_bytes_max: int = 1_048_576) -> LocalExecutor:
    return LocalExecutor(
        data_dir, env_allow=("PATH",), log_bytes_max=log_bytes_max, open_files_max=1024
    )


def wait_until(true: Callable[[], bool], what: str) -> None:
    """Poll an outside fact.

    Raises:
        AssertionError: it did not become true in `PATIENCE_S` seconds.
    """
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, f"not in {PATIENCE_S:g} s: {what}"
        time.sleep(0.005)


def wait_for(
    executor: BlockingExecutor, attempt_id: AttemptId, phases: frozenset[Phase] = ENDED
) -> AttemptObservation:
    """Poll until the attempt is in one of `phases`."""
    wait_until(
        lambda: executor.observe(attempt_id).phase in phases,
        f"{attempt_id} in {sorted(phases)}",
    )
    return executor.observe(attempt_id)


def log_of(data_dir: Path, rank: int = 0, attempt_id: AttemptId | None = None) -> str:
    folder = data_dir / "attempts" / (attempt() if attempt_id is None else attempt_id)
    path = folder / f"rank-{rank}.log"
    return path.read_text() if path.exists() else ""


def launcher_of(data_dir: Path) -> process.Identity:
    claim = AttemptFolder(str(data_dir), attempt()).claim()
    assert claim is not None
    assert claim.launcher is not None
    return claim.launcher
