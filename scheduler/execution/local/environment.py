"""What every process of an attempt finds in its environment: the torch.distributed contract.

The executor computes it whole; only MASTER_PORT is added by the launcher, which leases it.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from scheduler.execution.contract import (
    default_environment,
    place_environment,
    torch_environment,
)
from scheduler.execution.local.orders import GangOrder, RankOrder
from scheduler.execution.local.process import MARKER
from scheduler.model.execution import LaunchOrder, LaunchTask
from scheduler.model.job import LauncherKind

_MASTER_ADDR = "127.0.0.1"
_FALLBACK_PATH = "/usr/local/bin:/usr/bin:/bin"


@dataclass(frozen=True, slots=True)
class TaskLimits:
    """What this host allows every rank; see `settings.ExecutionSettings`.

    Attributes:
        env_allow: names of the daemon's environment that tasks inherit; `*` stands for any end.
        log_bytes_max: cap of one rank's log file.
        open_files_max: RLIMIT_NOFILE of a rank.
    """

    env_allow: tuple[str, ...]
    log_bytes_max: int
    open_files_max: int


def inherited(daemon: Mapping[str, str], allowed: tuple[str, ...]) -> dict[str, str]:
    """The part of the daemon's environment that tasks may see.

    PATH is always set; where it holds no `python`, our own interpreter's folder stands at its end.
    """
    env = {
        name: value
        for name, value in daemon.items()
        if any(fnmatchcase(name, pattern) for pattern in allowed)
    }
    env.setdefault("PATH", _FALLBACK_PATH)
    if shutil.which("python", path=env["PATH"]) is None:
        env["PATH"] += os.pathsep + os.path.dirname(sys.executable)  # noqa: PTH120 - text in, text out
    return env


def _common(order: LaunchOrder, task: LaunchTask) -> dict[str, str]:
    gpu_ids = ",".join(task.gpu_ids)
    return {
        **place_environment(order, task),
        # Simulated GPUs exist for the scheduler only; a task without GPUs must not find one.
        "CUDA_VISIBLE_DEVICES": "" if task.simulated else gpu_ids,
        MARKER: order.attempt_id,
        "HAVERSACK_GPU_IDS": gpu_ids,
    }


def gang_order(
    order: LaunchOrder,
    limits: TaskLimits,
    daemon: Mapping[str, str],
    launch_before_s: float = math.inf,
) -> GangOrder:
    """Spell an order out for the launcher, process by process.

    Args:
        order: what the store committed.
        limits: what this host allows.
        daemon: the daemon's environment.
        launch_before_s: seconds since boot after which it must not be started any more.
    """
    torch = order.launcher is LauncherKind.TORCH
    processes = order.processes if torch else 1
    base = inherited(daemon, limits.env_allow)
    ranks = []
    for task in order.tasks:
        common = (
            base | default_environment(task, processes) | dict(order.env) | _common(order, task)
        )
        for local_rank in range(processes):
            env = dict(common)
            if torch:
                env |= torch_environment(order, task, local_rank, master=_MASTER_ADDR)
            number = task.task_index * processes + local_rank
            ranks.append(RankOrder(number, list(order.command), env))
    ranks.sort(key=lambda rank: rank.rank)
    return GangOrder(
        attempt_id=order.attempt_id,
        epoch=order.epoch,
        ranks=ranks,
        workdir=order.workdir,
        stop_signal=order.stop_signal,
        grace_s=order.grace_s,
        max_runtime_s=order.max_runtime_s,
        log_bytes_max=limits.log_bytes_max,
        open_files_max=limits.open_files_max,
        master_port=torch,
        launch_before_s=None if math.isinf(launch_before_s) else launch_before_s,
    )
