"""The inventory of a host with real NVIDIA GPUs equals what nvidia-smi shows."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from scheduler.agent.inventory import HostInventory
from scheduler.model.node import Health

pytestmark = pytest.mark.gpu


def _nvidia_smi(*arguments: str) -> str:
    """What nvidia-smi prints; skips the test on a host without it or without a GPU."""
    program = shutil.which("nvidia-smi")
    if program is None:
        pytest.skip("SKIPPED: no nvidia-smi: this host has no NVIDIA GPU")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"SKIPPED: nvidia-smi finds no usable GPU: {done.stdout.strip()}")
    return done.stdout


def test_gpus_equal_nvidia_smi() -> None:
    fields = "uuid,name,memory.total,mig.mode.current"
    shown = [
        line.split(", ")
        for line in _nvidia_smi(
            f"--query-gpu={fields}", "--format=csv,noheader,nounits"
        ).splitlines()
    ]
    survey = HostInventory().survey()
    assert [(gpu.id, gpu.memory_mib) for gpu in survey.node.gpus] == [
        (uuid, int(memory)) for uuid, _, memory, _ in shown
    ]
    for gpu, (_, name, _, mig) in zip(survey.node.gpus, shown, strict=True):
        assert gpu.model.split("-")[0] in name
        if mig == "Enabled":
            assert gpu.health is not Health.HEALTHY
        elif not any(finding.gpu_id == gpu.id for finding in survey.findings):
            assert gpu.health is Health.HEALTHY
    assert survey.node.capacity.gpus == len(shown)


def test_nvlinks_equal_the_topology_matrix() -> None:
    rows = [
        re.sub(r"\x1b\[[0-9;]*m", "", line).split("\t")
        for line in _nvidia_smi("topo", "-m").splitlines()
    ]
    cells = [[cell.strip() for cell in row] for row in rows if row[0].startswith("GPU")]
    node = HostInventory().survey().node
    n = len(node.gpus)
    assert len(cells) == n
    for a in range(n):
        for b in range(n):
            bonded = re.fullmatch(r"NV(\d+)", cells[a][1 + b])
            assert node.links.nvlinks[a][b] == (int(bonded[1]) if bonded else 0)
            assert (node.links.bandwidth_gbps[a][b] > 0) == (a != b)
