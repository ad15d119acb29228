"""The host's inventory, against small hand-made NVMLs."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import structlog
from support.clusters import DGX1_V100
from support.nvml import (
    GPU_IS_LOST,
    NOT_SUPPORTED,
    FakeGpu,
    FakeNvml,
    dgx1_v100,
    switched,
)

from scheduler.agent.inventory import HostInventory, NvmlInventory, local_inventory
from scheduler.agent.nvml import Fabric, RemappedRows
from scheduler.model.gpu_names import short_model
from scheduler.model.node import Health
from scheduler.model.ports import Inventory


def test_the_inventories_are_inventories() -> None:
    inventories: Sequence[Inventory] = (
        HostInventory(FakeNvml(())),
        NvmlInventory(FakeNvml(())),
    )
    assert [len(inventory.nodes()) for inventory in inventories] == [1, 1]


def test_a_dgx1_shows_its_cube_mesh() -> None:
    node = NvmlInventory(dgx1_v100(DGX1_V100)).survey().node
    assert node.links.nvlinks == DGX1_V100
    assert node.links.domains() == (frozenset(range(8)),)
    for a in range(8):
        for b in range(8):
            links = DGX1_V100[a][b]
            # Across sockets without a link: 10; within one: 12.
            pcie = 10.0 if (a < 4) != (b < 4) else 12.0
            expected = 0.0 if a == b else links * 25.0 or pcie
            assert node.links.bandwidth_gbps[a][b] == expected


def test_behind_a_switch_the_smaller_count_of_active_links_decides() -> None:
    node = NvmlInventory(switched(active=(18, 18, 12), version=6)).survey().node
    assert node.links.nvlinks == ((0, 18, 12), (18, 0, 12), (12, 12, 0))
    assert node.links.bandwidth_gbps[0] == (0.0, 450.0, 300.0)


@pytest.mark.parametrize(
    ("version", "gbps"), [(1, 20.0), (2, 25.0), (4, 25.0), (6, 25.0), (7, 50.0), (99, 50.0)]
)
def test_link_rates_follow_nvml_version_numbers(version: int, gbps: float) -> None:
    node = NvmlInventory(switched(active=(1, 1), version=version)).survey().node
    assert node.links.bandwidth_gbps[0][1] == gbps


def test_a_pair_denied_peer_to_peer_has_no_nvlink() -> None:
    library = switched(active=(18, 18), version=6)
    library.p2p_read = 4  # disabled by registry key
    node = NvmlInventory(library).survey().node
    assert node.links.nvlinks == ((0, 0), (0, 0))
    assert node.links.bandwidth_gbps == ((0.0, 12.0), (12.0, 0.0))


def test_a_box_without_nvlink_falls_back_to_pcie() -> None:
    library = FakeNvml((FakeGpu("GPU-a"), FakeGpu("GPU-b", socket=1)))
    survey = NvmlInventory(library).survey()
    assert survey.node.links.nvlinks == ((0, 0), (0, 0))
    assert survey.node.links.bandwidth_gbps == ((0.0, 10.0), (10.0, 0.0))
    assert [gpu.health for gpu in survey.node.gpus] == [Health.HEALTHY] * 2
    assert survey.findings == ()


def test_links_to_something_that_is_no_gpu_of_ours_do_not_count() -> None:
    to_cpu = FakeGpu("GPU-a", links=(("0000:FF:00.0", 1),), link_version=2)
    library = FakeNvml((to_cpu, FakeGpu("GPU-b")))
    assert NvmlInventory(library).survey().node.links.nvlinks == ((0, 0), (0, 0))


def test_optional_queries_that_are_refused_prove_nothing() -> None:
    gpu = FakeGpu(
        "GPU-a",
        errors=dict.fromkeys(
            (
                "mig_enabled",
                "retired_pages_pending",
                "remapped_rows",
                "recovery_action",
                "fabric",
                "link_active",
            ),
            NOT_SUPPORTED,
        ),
    )
    survey = NvmlInventory(FakeNvml((gpu,))).survey()
    assert survey.node.gpus[0].health is Health.HEALTHY
    assert survey.findings == ()


@pytest.mark.parametrize(
    ("gpu", "health", "note"),
    [
        (FakeGpu("GPU-a", recovery=2), Health.UNHEALTHY, "recovery action 2"),
        (
            FakeGpu("GPU-a", rows=RemappedRows(pending=True, failed=True)),
            Health.UNHEALTHY,
            "could not be remapped",
        ),
        (
            FakeGpu("GPU-a", rows=RemappedRows(pending=True, failed=False)),
            Health.HEALTHY,
            "next reset",
        ),
        (FakeGpu("GPU-a", pages_pending=True), Health.UNHEALTHY, "retired"),
        (FakeGpu("GPU-a", fabric=Fabric(state=2, status=0)), Health.UNHEALTHY, "Fabric Manager"),
        (FakeGpu("GPU-a", fabric=Fabric(state=3, status=999)), Health.UNHEALTHY, "status 999"),
        (FakeGpu("GPU-a", mig=True), Health.UNKNOWN, "MIG"),
        (FakeGpu("GPU-a", errors={"link_active": GPU_IS_LOST}), Health.UNHEALTHY, "lost"),
    ],
)
def test_health_is_judged_and_explained(gpu: FakeGpu, health: Health, note: str) -> None:
    survey = NvmlInventory(FakeNvml((gpu,))).survey()
    assert survey.node.gpus[0].health is health
    assert survey.node.gpus[0].schedulable is (health is Health.HEALTHY)
    (finding,) = survey.findings
    assert finding.gpu_id == "GPU-a"
    assert note in finding.text


def test_a_registered_fabric_is_healthy() -> None:
    gpu = FakeGpu("GPU-a", fabric=Fabric(state=3, status=0))
    assert NvmlInventory(FakeNvml((gpu,))).survey().findings == ()


def test_a_gpu_that_falls_off_the_bus_stays_as_unhealthy_and_the_others_keep_their_links() -> None:
    library = switched(active=(18, 18, 18), version=6)
    inventory = NvmlInventory(library)
    before = inventory.survey().node
    library.gpus[1].errors["uuid"] = GPU_IS_LOST
    after = inventory.survey().node
    assert [gpu.id for gpu in after.gpus] == [gpu.id for gpu in before.gpus]
    assert [gpu.health for gpu in after.gpus] == [
        Health.HEALTHY,
        Health.UNHEALTHY,
        Health.HEALTHY,
    ]
    assert after.links.nvlinks == ((0, 0, 18), (0, 0, 0), (18, 0, 0))
    assert after.capacity.gpus == 3
    del library.gpus[1].errors["uuid"]
    assert inventory.survey().node == before


def test_a_gpu_lost_before_it_was_seen_is_left_out_with_a_finding() -> None:
    library = switched(active=(18, 18, 18), version=6)
    library.gpus[0].errors["device"] = GPU_IS_LOST
    survey = NvmlInventory(library).survey()
    assert [(gpu.id, gpu.index) for gpu in survey.node.gpus] == [("GPU-1", 0), ("GPU-2", 1)]
    assert survey.node.links.nvlinks == ((0, 18), (18, 0))
    assert "GPU 0 cannot be read" in survey.findings[0].text


def test_when_the_count_changes_remembered_positions_are_forgotten() -> None:
    library = switched(active=(18, 18, 18), version=6)
    inventory = NvmlInventory(library)
    inventory.survey()
    library.gpus = library.gpus[1:]  # what was index 1 is now index 0
    library.gpus[0].errors["uuid"] = GPU_IS_LOST
    survey = inventory.survey()
    assert [gpu.id for gpu in survey.node.gpus] == ["GPU-2"]


def test_a_driver_that_goes_away_leaves_known_gpus_unhealthy_and_a_reload_heals_them() -> None:
    library = switched(active=(18, 18), version=6)
    inventory = NvmlInventory(library)
    healthy = inventory.survey()
    library.open_error = 9
    library.connected = False
    broken = inventory.survey()
    assert [gpu.id for gpu in broken.node.gpus] == [gpu.id for gpu in healthy.node.gpus]
    assert {gpu.health for gpu in broken.node.gpus} == {Health.UNHEALTHY}
    assert "cannot count" in broken.findings[0].text
    library.open_error = None
    assert inventory.survey() == healthy


def test_a_host_without_a_driver_offers_processors_and_says_nothing() -> None:
    survey = HostInventory(FakeNvml((), open_error=12)).survey()
    assert survey.node.gpus == ()
    assert survey.node.capacity.gpus == 0
    assert survey.node.capacity.cpu_milli > 0
    assert survey.node.capacity.memory_mib > 0
    assert survey.node.links.nvlinks == ()
    assert survey.findings == ()
    assert not survey.node.simulated


def test_a_broken_driver_is_reported() -> None:
    (finding,) = HostInventory(FakeNvml((), open_error=18)).survey().findings
    assert "NVML does not open" in finding.text


def test_a_finding_is_logged_once_until_it_comes_anew() -> None:
    library = FakeNvml((FakeGpu("GPU-a", mig=True),))
    inventory = HostInventory(library)
    with structlog.testing.capture_logs() as logs:
        inventory.nodes()
        inventory.nodes()
        library.gpus[0].mig = False
        inventory.nodes()
        library.gpus[0].mig = True
        inventory.nodes()
    assert [entry["gpu"] for entry in logs] == ["GPU-a", "GPU-a"]


def test_the_local_inventory_is_virtual_on_request() -> None:
    assert [node.simulated for node in local_inventory("2x1:T4").nodes()] == [True, True]


@pytest.mark.parametrize(
    ("product", "model"),
    [
        ("NVIDIA H200", "H200"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 NVL", "H100"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100-PCIE-40GB", "A100"),
        ("A100-SXM-80GB", "A100"),
        ("Tesla V100-SXM2-16GB", "V100"),
        ("Tesla T4", "T4"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("NVIDIA GeForce RTX 3090", "RTX-3090"),
        ("NVIDIA GeForce RTX 3080 Ti Laptop GPU", "RTX-3080-Ti"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX-6000-Ada"),
        ("NVIDIA TITAN V", "TITAN-V"),
        ("NVIDIA", "unknown"),
    ],
)
def test_short_model(product: str, model: str) -> None:
    assert short_model(product) == model
