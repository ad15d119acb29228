"""What a process finds in its environment wherever it runs: Haversack's names, and torch's.

The torch.distributed contract is that of torchrun (torch 2.13, `distributed/run.py`): the variables
of a worker, and the `PET_*` defaults of torchrun's own options for commands that start it.
"""

from __future__ import annotations

from scheduler.model.execution import LaunchOrder, LaunchTask


def place_environment(order: LaunchOrder, task: LaunchTask) -> dict[str, str]:
    """Which job and task this is, and where."""
    return {
        "HAVERSACK_ATTEMPT": str(order.number),
        "HAVERSACK_JOB_ID": order.job_id,
        "HAVERSACK_NODE": task.node_name,
        "HAVERSACK_SIMULATED": "1" if task.simulated else "0",
        "HAVERSACK_TASK_INDEX": str(task.task_index),
    }


def torch_environment(
    order: LaunchOrder, task: LaunchTask, local_rank: int, *, master: str
) -> dict[str, str]:
    """The torch.distributed contract, all but the master's port.

    A task is torch's "node" (group): LOCAL_RANK counts within it, even if two share a host. The
    PET_ variables are torchrun's own defaults for the same facts, for commands that start torchrun
    themselves: one process a task, which then starts one worker per GPU.

    Args:
        order: the gang.
        task: the process's task.
        local_rank: the process within its task.
        master: host of rank 0, as all ranks reach it.
    """
    run_id = f"{order.job_id}-{order.number}"  # holds the attempt: an old rank can never rejoin
    world = str(len(order.tasks) * order.processes)
    rank = str(task.task_index * order.processes + local_rank)
    per_node = order.processes if order.processes > 1 else max(1, len(task.gpu_ids))
    return {
        "GROUP_RANK": str(task.task_index),
        "GROUP_WORLD_SIZE": str(len(order.tasks)),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(order.processes),
        "MASTER_ADDR": master,
        "PET_MASTER_ADDR": master,
        "PET_NNODES": str(len(order.tasks)),
        "PET_NODE_RANK": str(task.task_index),
        "PET_NPROC_PER_NODE": str(per_node),
        "PET_RDZV_ID": run_id,
        "RANK": rank,
        "ROLE_RANK": rank,
        "ROLE_WORLD_SIZE": world,
        "TORCHELASTIC_MAX_RESTARTS": "0",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_RUN_ID": run_id,
        "WORLD_SIZE": world,
    }


def default_environment(task: LaunchTask, processes: int) -> dict[str, str]:
    """What the job's own environment may override."""
    threads = max(1, task.cpu_milli // 1000 // processes)
    return {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
