from __future__ import annotations

import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from support.execution import attempt, launch_order

from scheduler.execution.local.environment import TaskLimits, gang_order, inherited
from scheduler.execution.local.orders import GangOrder
from scheduler.model.job import LauncherKind

LIMITS = TaskLimits(("PATH", "HOME"), log_bytes_max=4096, open_files_max=64)
DAEMON = {"PATH": "/usr/bin:/bin", "HOME": "/home/u", "SECRET": "s"}


def envs(**change: object) -> list[dict[str, str]]:
    order = launch_order("true", **change)  # type: ignore[arg-type]
    return [rank.env for rank in gang_order(order, LIMITS, DAEMON).ranks]


def test_the_torch_contract_of_a_gang() -> None:
    ranks = envs(
        launcher=LauncherKind.TORCH,
        tasks=2,
        processes=2,
        gpus=[["GPU-a", "GPU-b"], ["GPU-c", "GPU-d"]],
        number=3,
        cpu_milli=8000,
    )
    assert [env["RANK"] for env in ranks] == ["0", "1", "2", "3"]
    assert [env["LOCAL_RANK"] for env in ranks] == ["0", "1", "0", "1"]
    assert [env["GROUP_RANK"] for env in ranks] == ["0", "0", "1", "1"]
    assert [env["CUDA_VISIBLE_DEVICES"] for env in ranks] == ["GPU-a,GPU-b"] * 2 + [
        "GPU-c,GPU-d"
    ] * 2
    assert ranks[2] == {
        "CUDA_VISIBLE_DEVICES": "GPU-c,GPU-d",
        "GROUP_RANK": "1",
        "GROUP_WORLD_SIZE": "2",
        "HAVERSACK_ATTEMPT": "3",
        "HAVERSACK_ATTEMPT_ID": attempt(),
        "HAVERSACK_GPU_IDS": "GPU-c,GPU-d",
        "HAVERSACK_JOB_ID": "j-0000000000000001",
        "HAVERSACK_NODE": "box",
        "HAVERSACK_SIMULATED": "0",
        "HAVERSACK_TASK_INDEX": "1",
        "HOME": "/home/u",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "OMP_NUM_THREADS": "4",
        "PATH": ranks[2]["PATH"],
        "PET_MASTER_ADDR": "127.0.0.1",
        "PET_NNODES": "2",
        "PET_NODE_RANK": "1",
        "PET_NPROC_PER_NODE": "2",
        "PET_RDZV_ID": "j-0000000000000001-3",
        "PYTHONUNBUFFERED": "1",
        "RANK": "2",
        "ROLE_RANK": "2",
        "ROLE_WORLD_SIZE": "4",
        "TORCHELASTIC_MAX_RESTARTS": "0",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_RUN_ID": "j-0000000000000001-3",
        "WORLD_SIZE": "4",
    }


def test_without_a_launcher_there_is_one_plain_process_a_task() -> None:
    ranks = envs(tasks=2, processes=4)
    assert len(ranks) == 2
    assert not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "PET_NNODES"} & ranks[0].keys()
    assert [env["HAVERSACK_TASK_INDEX"] for env in ranks] == ["0", "1"]
    assert not gang_order(launch_order("true"), LIMITS, DAEMON).master_port


def test_simulated_gpus_are_told_but_none_is_visible() -> None:
    env = envs(gpus=[["SIM-box-0"]], simulated=True)[0]
    assert env["CUDA_VISIBLE_DEVICES"] == ""
    assert env["HAVERSACK_GPU_IDS"] == "SIM-box-0"
    assert env["HAVERSACK_SIMULATED"] == "1"
    assert envs()[0]["CUDA_VISIBLE_DEVICES"] == ""


def test_the_job_may_choose_defaults_but_not_its_identity_or_gpus() -> None:
    env = envs(
        env={
            "OMP_NUM_THREADS": "7",
            "HAVERSACK_ATTEMPT_ID": "a-other",
            "CUDA_VISIBLE_DEVICES": "0",
            "RANK": "9",
            "MINE": "x",
        },
        launcher=LauncherKind.TORCH,
    )[0]
    assert env["OMP_NUM_THREADS"] == "7"
    assert env["MINE"] == "x"
    assert env["HAVERSACK_ATTEMPT_ID"] == attempt()
    assert env["CUDA_VISIBLE_DEVICES"] == ""
    assert env["RANK"] == "0"


def test_only_allowed_variables_pass() -> None:
    assert "SECRET" not in envs()[0]
    assert inherited({}, ("PATH",))["PATH"].startswith("/usr/local/bin")


def test_a_family_of_variables_is_allowed_by_its_beginning() -> None:
    daemon = DAEMON | {"NCCL_NVLS_ENABLE": "0", "NCCL_DEBUG": "WARN", "MY_NCCL_SECRET": "s"}
    env = inherited(daemon, ("PATH", "NCCL_*"))
    assert env.keys() - {"PATH"} == {"NCCL_NVLS_ENABLE", "NCCL_DEBUG"}


def test_python_is_found_even_if_the_daemon_path_has_none(tmp_path: Path) -> None:
    env = inherited({"PATH": str(tmp_path)}, ("PATH",))
    assert env["PATH"] == f"{tmp_path}:{Path(sys.executable).parent}"
    python = tmp_path / "python"
    python.touch(mode=0o755)
    assert inherited({"PATH": str(tmp_path)}, ("PATH",))["PATH"] == str(tmp_path)


def test_torchrun_finds_one_worker_per_gpu() -> None:
    env = envs(launcher=LauncherKind.TORCH, gpus=[["a", "b", "c"]])[0]
    assert env["LOCAL_WORLD_SIZE"] == "1"
    assert env["PET_NPROC_PER_NODE"] == "3"


@given(tasks=st.integers(1, 6), processes=st.integers(1, 6))
def test_ranks_are_numbered_through_without_gap(tasks: int, processes: int) -> None:
    order = launch_order("true", tasks=tasks, processes=processes, launcher=LauncherKind.TORCH)
    gang = gang_order(order, LIMITS, DAEMON)
    assert [rank.rank for rank in gang.ranks] == list(range(tasks * processes))
    assert all(rank.env["RANK"] == str(rank.rank) for rank in gang.ranks)
    again = GangOrder.from_record(gang.to_record())
    assert again.to_record() == gang.to_record()
