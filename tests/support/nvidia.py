"""What the NVIDIA driver says about this host's GPUs, asked beside Haversack's back."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pynvml
import pytest

from scheduler.execution.local.files import AttemptFolder, live_attempts

BUSY_MIB = 500
"""A GPU with so much more memory in use than when idle is occupied."""
_BYTES_PER_MIB = 2**20


def nvidia_smi(*arguments: str) -> str:
    """What nvidia-smi prints; skips the test on a host without it or without a GPU."""
    program = shutil.which("nvidia-smi")
    if program is None:
        pytest.skip("SKIPPED: no nvidia-smi: this host has no NVIDIA GPU")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"SKIPPED: nvidia-smi finds no usable GPU: {done.stdout.strip()}")
    return done.stdout


def query(*fields: str) -> list[list[str]]:
    """One row per GPU of `nvidia-smi --query-gpu`."""
    text = nvidia_smi(f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits")
    return [line.split(", ") for line in text.splitlines()]


@dataclass(frozen=True)
class Occupancy:
    """One GPU's use.

    Attributes:
        memory_mib: in use, by whomever.
        pids: compute processes; empty where the driver hides them (some containers).
    """

    memory_mib: int
    pids: tuple[int, ...]


def occupancy() -> dict[str, Occupancy]:
    """Use by GPU id, as NVML tells it now."""
    with _nvml():
        found = {}
        for index in range(pynvml.nvmlDeviceGetCount()):
            device = pynvml.nvmlDeviceGetHandleByIndex(index)
            processes = pynvml.nvmlDeviceGetComputeRunningProcesses(device)
            found[str(pynvml.nvmlDeviceGetUUID(device))] = Occupancy(
                memory_mib=pynvml.nvmlDeviceGetMemoryInfo(device).used // _BYTES_PER_MIB,
                pids=tuple(sorted(process.pid for process in processes)),
            )
        return found


@contextmanager
def _nvml() -> Iterator[None]:
    pynvml.nvmlInit()
    try:
        yield
    finally:
        pynvml.nvmlShutdown()


def occupied(idle: Mapping[str, Occupancy], now: Mapping[str, Occupancy]) -> set[str]:
    """GPUs that somebody computes on: a process is there, or its memory is in use."""
    return {
        gpu
        for gpu, use in now.items()
        if use.pids or use.memory_mib > idle[gpu].memory_mib + BUSY_MIB
    }


def release(data_dir: Path) -> None:
    """Kill what still runs under a dead daemon's directory: a failed test must not keep GPUs."""
    for attempt in live_attempts(str(data_dir)):
        claim = AttemptFolder(str(data_dir), attempt).claim()
        if claim is not None and claim.launcher is not None and claim.launcher.alive():
            os.kill(claim.launcher.pid, signal.SIGKILL)  # its ranks die with it


def job_of(pid: int) -> str | None:
    """The job a process belongs to; None when this host cannot tell (another PID namespace)."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    name = b"HAVERSACK_JOB_ID="
    return next((v.removeprefix(name).decode() for v in environment if v.startswith(name)), None)
