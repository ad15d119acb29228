"""The inventory of a host with real NVIDIA GPUs equals what nvidia-smi shows."""

from __future__ import annotations

import re

import pytest
from support import nvidia

from scheduler.agent.inventory import HostInventory
from scheduler.model.node import Health

pytestmark = pytest.mark.gpu


def test_gpus_equal_nvidia_smi() -> None:
    shown = nvidia.query("uuid", "name", "memory.total", "mig.mode.current")
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
        for line in nvidia.nvidia_smi("topo", "-m").splitlines()
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
