"""The whole daemon on real NVIDIA GPUs: it offers, starts and holds what the driver sees."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support import nvidia
from support.daemon import DaemonProcess, job_document, wait_for_states

from scheduler.model.gpu_names import short_model

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

EXAMPLES = Path(__file__).parents[2] / "docs" / "guide" / "examples"
RUN_S = 180.0
QUIET = {
    # Multicast takes switch resources that GPUs of other tenants of the host may share.
    "NCCL_NVLS_ENABLE": "0",
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
    "NVSHMEM_DISABLE_NVLS": "1",
}


@pytest.fixture
def idle(alone: None) -> dict[str, nvidia.Occupancy]:
    """The GPUs' use before anything of ours ran."""
    nvidia.nvidia_smi("-L")  # skips without a GPU
    return nvidia.occupancy()


@pytest.fixture
def client(tmp_path: Path, idle: dict[str, nvidia.Occupancy]) -> Iterator[httpx.Client]:
    """A client of a daemon on this host's GPUs; its jobs are ended with it."""
    daemon = DaemonProcess(tmp_path / "data")
    daemon.start()
    try:
        with daemon.http() as client:
            yield client
            end_all(client)
            assert nvidia.occupied(idle, nvidia.occupancy()) == set()
        daemon.stop()
    finally:
        daemon.kill()
        nvidia.release(daemon.data_dir)


def end_all(client: httpx.Client) -> None:
    jobs = client.get("/api/v1/jobs", params={"limit": "500"}).json()["items"]
    for job in jobs:
        if job["finished_at"] is None:
            client.post(f"/api/v1/jobs/{job['id']}:cancel")
    wait_for_states(client, [job["id"] for job in jobs])


def ddp(*, tasks: int, gpus: int, seconds: float, grace_s: float = 30.0) -> dict[str, object]:
    """The guide's example, which first tells what GPUs it was given."""
    document = job_document(
        "ddp",
        ["sh", "-c", 'echo "[rank $RANK] visible $CUDA_VISIBLE_DEVICES"; exec python ddp.py'],
        tasks=tasks,
        gpus=gpus,
        launcher="torch",
        workdir=str(EXAMPLES),
        checkpoint={"signal": "SIGTERM", "grace_s": grace_s},
    )
    spec = document["spec"]
    assert isinstance(spec, dict)
    spec["task"]["env"] = QUIET | {"DDP_SECONDS": str(seconds)}
    return document


def submit(client: httpx.Client, document: dict[str, object]) -> str:
    answer = client.post("/api/v1/jobs", json=document)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def logs(client: httpx.Client, job: str) -> dict[int, str]:
    """What each rank has printed."""
    answer = client.get(f"/api/v1/jobs/{job}/logs", params={"rank": "all", "limit": "1048576"})
    return {chunk["rank"]: chunk["data"] for chunk in answer.json()["chunks"]}


def wait_until_training(client: httpx.Client, job: str) -> None:
    deadline = time.monotonic() + RUN_S
    while "step" not in logs(client, job).get(0, ""):
        state = client.get(f"/api/v1/jobs/{job}").json()["state"]
        assert state not in {"FAILED", "SUCCEEDED"}, logs(client, job)
        assert time.monotonic() < deadline, logs(client, job)
        time.sleep(0.1)


def test_gpus_of_the_daemon_equal_nvidia_smi(client: httpx.Client) -> None:
    shown = nvidia.query("uuid", "name", "memory.total")
    offered = client.get("/api/v1/gpus").json()["items"]
    assert sorted((gpu["id"], gpu["model"], gpu["memory_mib"]) for gpu in offered) == sorted(
        (uuid, short_model(name), int(memory)) for uuid, name, memory in shown
    )
    assert all(gpu["health"] == "healthy" and not gpu["simulated"] for gpu in offered)


@pytest.mark.parametrize("one_task_per_gpu", [True, False], ids=["gang", "one-task"])
def test_an_nccl_job_runs_on_the_gpus_it_was_given(
    client: httpx.Client, idle: dict[str, nvidia.Occupancy], *, one_task_per_gpu: bool
) -> None:
    world = len(idle)
    shape = (world, 1) if one_task_per_gpu else (1, world)
    job = submit(client, ddp(tasks=shape[0], gpus=shape[1], seconds=3))
    wait_until_training(client, job)
    assert nvidia.occupied(idle, nvidia.occupancy()) == idle.keys()
    states = wait_for_states(client, [job], timeout_s=RUN_S)
    told = logs(client, job)
    sys.stdout.write("\n".join(told.values()))
    assert states == {job: "SUCCEEDED"}, told
    (attempt,) = client.get(f"/api/v1/jobs/{job}").json()["attempts"]
    given = {task["task_index"]: ",".join(task["gpu_ids"]) for task in attempt["tasks"]}
    assert {gpu for ids in given.values() for gpu in ids.split(",")} == idle.keys()
    assert told.keys() == set(range(world))
    checksums = set()
    for rank, text in told.items():
        task, local_rank = (rank, 0) if one_task_per_gpu else (0, rank)
        assert f"[rank {rank}] visible {given[task]}\n" in text
        assert f"world size {world}, backend nccl, device cuda:{local_rank}\n" in text
        total = world * (world - 1) // 2
        assert f"all-reduce of ranks: {total}, expected {total}\n" in text
        agreed = re.search(rf"PARAMETERS AGREE on {world} ranks, checksum (\S+)", text)
        assert agreed, text
        checksums.add(agreed[1])
    assert len(checksums) == 1


def test_a_cancelled_nccl_job_ends_by_itself_and_frees_its_gpus(
    client: httpx.Client, idle: dict[str, nvidia.Occupancy]
) -> None:
    job = submit(client, ddp(tasks=len(idle), gpus=1, seconds=600))
    wait_until_training(client, job)
    client.post(f"/api/v1/jobs/{job}:cancel")
    assert wait_for_states(client, [job]) == {job: "CANCELLED"}
    assert nvidia.occupied(idle, nvidia.occupancy()) == set()
    for text in logs(client, job).values():
        assert "asked to stop: ended early and cleanly" in text


def test_the_gang_ends_when_one_rank_is_killed(
    client: httpx.Client, idle: dict[str, nvidia.Occupancy]
) -> None:
    """The other ranks hang in a collective then; they must not hold their GPUs."""
    job = submit(client, ddp(tasks=len(idle), gpus=1, seconds=600, grace_s=5))
    wait_until_training(client, job)
    victim = max(
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/environ")
        if nvidia.job_of(int(path.parent.name)) == job
    )
    os.kill(victim, signal.SIGKILL)
    assert wait_for_states(client, [job]) == {job: "FAILED"}
    assert nvidia.occupied(idle, nvidia.occupancy()) == set()
