from __future__ import annotations

import pytest

from scheduler.errors import ConfigurationError
from scheduler.execution.kubernetes.levels import (
    ALL_LEVELS,
    PRESETS,
    levels_of,
    price_class_of,
)
from scheduler.model.node import PriceClass

ZONE = {"topology.kubernetes.io/zone": "z1"}


@pytest.mark.parametrize(
    ("labels", "rack"),
    [
        ({}, ""),
        (ZONE, ""),
        ({"topology.kubernetes.io/rack": "r1"}, "r1"),
        ({**ZONE, "topology.kubernetes.io/rack": "r1"}, "z1/r1"),
        (
            {
                "cloud.google.com/gce-topology-block": "b",
                "cloud.google.com/gce-topology-subblock": "s",
            },
            "s",
        ),
        ({"cloud.google.com/gce-topology-block": "b"}, "b"),
        (
            {f"topology.k8s.aws/network-node-layer-{layer}": f"nn-{layer}" for layer in (1, 2, 3)},
            "nn-3",
        ),
        (
            {
                "topology.k8s.aws/network-node-layer-3": "nn-3",
                "topology.k8s.aws/ultraserver-id": "us-1",
            },
            "us-1",
        ),
        ({"network.topology.nvidia.com/tier-0": "leaf-1"}, "leaf-1"),
        ({"nvidia.com/gpu.clique": "c0ffee.1"}, ""),
    ],
)
def test_the_rack_is_the_nearest_level_a_node_has(labels: dict[str, str], rack: str) -> None:
    assert ALL_LEVELS.rack_of(labels) == rack


def test_ones_own_labels_go_before_the_presets() -> None:
    levels = levels_of(["nvlink-fabric", "plain"], rack=["example.org/row"])
    assert levels.rack[0] == "example.org/row"
    everything = {"example.org/row": "7", "nvidia.com/gpu.clique": "c.1"}
    assert levels.rack_of(everything) == "7"
    assert levels.rack_of({"nvidia.com/gpu.clique": "c.1"}) == "c.1"


def test_an_unknown_preset_lists_the_known() -> None:
    with pytest.raises(ConfigurationError, match="eks, gke, nvlink-fabric, plain, topograph"):
        levels_of(["azure"])
    assert all(PRESETS.values())


@pytest.mark.parametrize(
    ("labels", "price"),
    [
        ({}, PriceClass.RESERVED),
        ({"karpenter.sh/capacity-type": "spot"}, PriceClass.SPOT),
        ({"karpenter.sh/capacity-type": "on-demand"}, PriceClass.ON_DEMAND),
        ({"eks.amazonaws.com/capacityType": "ON_DEMAND"}, PriceClass.ON_DEMAND),
        ({"eks.amazonaws.com/capacityType": "SPOT"}, PriceClass.SPOT),
        ({"cloud.google.com/gke-spot": "true"}, PriceClass.SPOT),
        ({"cloud.google.com/gke-spot": "false"}, PriceClass.RESERVED),
        ({"kubernetes.azure.com/scalesetpriority": "spot"}, PriceClass.SPOT),
    ],
)
def test_price_classes(labels: dict[str, str], price: PriceClass) -> None:
    assert price_class_of(labels) is price
