from __future__ import annotations

import json

import pytest
from support.builders import full_mesh

from scheduler.execution.kubernetes.boards import Gpus, gpus_of, model_of
from scheduler.model.node import NO_LINKS

PRODUCT = "nvidia.com/gpu.product"


def annotation(
    size: int, nvlinks: object = None, bandwidth: object = None, **changes: object
) -> str:
    mesh = full_mesh(size)
    document = {
        "gpus": [
            {"uuid": f"GPU-{at:04d}", "model": "H100", "memory_mib": 81_559} for at in range(size)
        ],
        "nvlinks": mesh.nvlinks if nvlinks is None else nvlinks,
        "bandwidth_gbps": mesh.bandwidth_gbps if bandwidth is None else bandwidth,
        **changes,
    }
    return json.dumps(document)


def read(text: str, count: int = 2, **labels: str) -> Gpus:
    return gpus_of("uid-0", count, labels, text)


def test_the_agents_annotation_gives_ids_and_links() -> None:
    found = read(annotation(8), 8)
    assert [gpu.id for gpu in found.gpus] == [f"GPU-{at:04d}" for at in range(8)]
    assert [gpu.index for gpu in found.gpus] == list(range(8))
    assert {(gpu.model, gpu.memory_mib) for gpu in found.gpus} == {("H100", 81_559)}
    assert found.links == full_mesh(8)
    assert not found.warnings


def test_islands_smaller_than_the_node_are_no_promise() -> None:
    """Two bridged pairs: of four free GPUs the kubelet may take one of each."""
    pairs = [[0, 4, 0, 0], [4, 0, 0, 0], [0, 0, 0, 4], [0, 0, 4, 0]]
    found = read(annotation(4, nvlinks=pairs), 4)
    assert [gpu.id for gpu in found.gpus] == ["GPU-0000", "GPU-0001", "GPU-0002", "GPU-0003"]
    assert found.links == NO_LINKS
    assert not found.warnings


def test_a_domain_that_is_linked_in_steps_is_one() -> None:
    ring = [[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]]
    assert len(read(annotation(4, nvlinks=ring), 4).links.domains()) == 1


@pytest.mark.parametrize(
    ("broken", "fault"),
    [
        ("{", "no JSON"),
        ("[]", "names 0 GPUs"),
        ("[" * 10_000, "no JSON"),
        (annotation(3), "names 3 GPUs, the node offers 2"),
        (annotation(2, gpus=[{"uuid": "a", "model": "b"}] * 2), "different uuids"),
        (annotation(2, gpus=[{"uuid": "a"}, {"uuid": "b"}]), "gpus[0]: wants uuid"),
        (annotation(2, nvlinks=[[0, 1]]), "nvlinks: wants a matrix of 2 x 2"),
        (annotation(2, nvlinks=[[0, 1], [1]]), "nvlinks: wants a matrix of 2 x 2"),
        (annotation(2, nvlinks=None, bandwidth="fast"), "bandwidth_gbps: wants a matrix"),
        (annotation(2, nvlinks=[[0, 1], [2, 0]]), "symmetric"),
        (annotation(2, nvlinks=[[1, 1], [1, 0]]), "zeros on its diagonal"),
        (annotation(2, nvlinks=[[0, -1], [-1, 0]]), "not negative"),
        (annotation(2, nvlinks=[[0, True], [True, 0]]), "finite numbers"),
        (annotation(2, nvlinks=[[0, 1.5], [1.5, 0]]), "whole numbers"),
        (annotation(2, bandwidth=[[0, 1e300], [1e300, 0]]), "finite numbers"),
    ],
)
def test_a_broken_annotation_is_a_warning(broken: str, fault: str) -> None:
    found = read(broken)
    assert [gpu.id for gpu in found.gpus] == ["uid-0/gpu-0", "uid-0/gpu-1"]
    (warning,) = found.warnings
    assert warning.startswith("annotation haversack.dev/topology: ")
    assert fault in warning


@pytest.mark.parametrize(
    ("labels", "linked"),
    [
        ({}, False),
        ({PRODUCT: "NVIDIA-A100-SXM4-80GB"}, True),
        ({PRODUCT: "NVIDIA-H100-80GB-HBM3"}, True),
        ({PRODUCT: "NVIDIA-H200"}, True),
        ({PRODUCT: "NVIDIA-H200-NVL"}, False),
        ({PRODUCT: "NVIDIA-H100-PCIe"}, False),
        ({PRODUCT: "NVIDIA-L40S"}, False),
        ({PRODUCT: "NVIDIA-L40S", "nvidia.com/gpu.clique": "c0ffee.1"}, True),
        ({PRODUCT: "NVIDIA-A100-SXM4-80GB-SHARED"}, False),
        ({PRODUCT: "NVIDIA-A100-SXM4-80GB-MIG-1g.10gb"}, False),
        ({PRODUCT: "NVIDIA-A100-SXM4-80GB", "nvidia.com/gpu.sharing-strategy": "mps"}, False),
        ({PRODUCT: "NVIDIA-A100-SXM4-80GB", "nvidia.com/gpu.sharing-strategy": "none"}, True),
        ({"amd.com/gpu.product-name": "AMD_Instinct_MI300X_OAM"}, False),
    ],
)
def test_without_the_agent_labels_say_whether_the_node_is_one_domain(
    labels: dict[str, str], *, linked: bool
) -> None:
    links = read("", 4, **labels).links
    assert (len(links.domains()) == 1) is linked
    assert (links == NO_LINKS) is not linked
    assert links.bandwidth_gbps == (), "how fast is not known"


@pytest.mark.parametrize(
    ("labels", "model"),
    [
        ({}, "unknown"),
        ({PRODUCT: "NVIDIA-A100-SXM4-80GB"}, "A100"),
        ({PRODUCT: "Tesla-T4"}, "T4"),
        ({PRODUCT: "NVIDIA-GeForce-RTX-4090"}, "RTX-4090"),
        ({PRODUCT: "NVIDIA-L4-SHARED"}, "L4-SHARED"),
        ({PRODUCT: "NVIDIA-A100-SXM4-40GB-MIG-1g.5gb"}, "A100-MIG-1g.5gb"),
        ({"amd.com/gpu.product-name": "AMD_Instinct_MI300X_OAM"}, "MI300X"),
        ({"amd.com/gpu.product-name": "AMD_Radeon"}, "unknown"),
    ],
)
def test_models_by_which_jobs_ask(labels: dict[str, str], model: str) -> None:
    assert model_of(labels) == model


def test_memory_of_a_gpu() -> None:
    assert read("", 1, **{"nvidia.com/gpu.memory": "81559"}).gpus[0].memory_mib == 81_559
    assert read("", 1, **{"nvidia.com/gpu.memory": "lots"}).gpus[0].memory_mib == 0
    assert read("", 1, **{"amd.com/gpu.vram": "192G"}).gpus[0].memory_mib == 192 * 1024


def test_a_node_without_gpus_has_none_whatever_it_says() -> None:
    assert read(annotation(2), 0) == Gpus()
