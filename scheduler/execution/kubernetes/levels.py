"""Which node labels say where a node stands, and how it is paid for.

The model knows two levels above a node: its rack, inside which traffic is cheap, and its zone.
Clouds and tools name them differently, so both are lists of labels, the best first; the first that
a node has counts. Sources: the label pages of the clouds, NVIDIA/topograph and
NVIDIA/k8s-device-plugin.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from scheduler.errors import ConfigurationError
from scheduler.execution.kubernetes import labels
from scheduler.model.node import PriceClass

_NETWORK = "network.topology.nvidia.com/"
_GKE = "cloud.google.com/gce-topology-"
_EKS = "topology.k8s.aws/"


@dataclass(frozen=True, slots=True)
class Levels:
    """Labels of the rack and of the zone, the best first.

    Attributes:
        rack: what tells racks apart. A cloud's smallest block of the network that holds more than
            one host counts as one, and so does an NVLink fabric that spans hosts.
        zone: what tells zones apart.
    """

    rack: tuple[str, ...]
    zone: tuple[str, ...] = (labels.ZONE,)

    def rack_of(self, node_labels: Mapping[str, str]) -> str:
        """The node's rack, "" if unknown.

        The zone is part of the name, for two zones may number their racks alike.
        """
        rack, zone = _first(self.rack, node_labels), self.zone_of(node_labels)
        return f"{zone}/{rack}" if rack and zone else rack

    def zone_of(self, node_labels: Mapping[str, str]) -> str:
        """The node's zone, "" if unknown."""
        return _first(self.zone, node_labels)


PRESETS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        # The NVLink fabric of rack-scale machines: nodes of equal clique reach each other over it.
        "nvlink-fabric": (labels.GPU_CLIQUE, f"{_NETWORK}accelerator"),
        "gke": (f"{_GKE}subblock", f"{_GKE}block"),
        # Layer 1 is the top; not every instance type has all four.
        "eks": (
            f"{_EKS}ultraserver-id",
            *(f"{_EKS}network-node-layer-{layer}" for layer in (4, 3, 2, 1)),
        ),
        # Tier 0 is the switch next to the host; the names below it are older spellings.
        "topograph": (f"{_NETWORK}tier-0", f"{_NETWORK}leaf", f"{_NETWORK}block"),
        "plain": ("topology.kubernetes.io/rack",),
    }
)
"""Rack labels by where a cluster runs."""


def levels_of(presets: Sequence[str], rack: Sequence[str] = ()) -> Levels:
    """The levels of a cluster.

    Args:
        presets: names from `PRESETS`, the best first.
        rack: labels of one's own, which go before.

    Raises:
        ConfigurationError: there is no such preset; the message lists those there are.
    """
    unknown = [name for name in presets if name not in PRESETS]
    if unknown:
        raise ConfigurationError(
            f"no topology preset {unknown[0]!r}; there are {', '.join(sorted(PRESETS))}"
        )
    found = (*rack, *(label for name in presets for label in PRESETS[name]))
    return Levels(tuple(dict.fromkeys(found)))


ALL_LEVELS: Final = levels_of(("gke", "eks", "topograph", "plain"))
"""Every preset but the NVLink fabric, which single hosts have labels of as well."""

_PRICES: Final[Mapping[tuple[str, str], PriceClass]] = MappingProxyType(
    {
        (labels.KARPENTER_CAPACITY, "spot"): PriceClass.SPOT,
        (labels.KARPENTER_CAPACITY, "on-demand"): PriceClass.ON_DEMAND,
        (labels.KARPENTER_CAPACITY, "reserved"): PriceClass.RESERVED,
        (labels.EKS_CAPACITY, "spot"): PriceClass.SPOT,
        (labels.EKS_CAPACITY, "on_demand"): PriceClass.ON_DEMAND,
        (labels.EKS_CAPACITY, "capacity_block"): PriceClass.RESERVED,
        (labels.GKE_SPOT, "true"): PriceClass.SPOT,
        (labels.AZURE_SCALE_SET, "spot"): PriceClass.SPOT,
        (labels.AZURE_SCALE_SET, "regular"): PriceClass.ON_DEMAND,
    }
)


def price_class_of(node_labels: Mapping[str, str]) -> PriceClass:
    """How the node is paid for; RESERVED when no label says, for then it is simply there."""
    for (label, value), price_class in _PRICES.items():
        if node_labels.get(label, "").lower() == value:
            return price_class
    return PriceClass.RESERVED


def _first(names: Iterable[str], node_labels: Mapping[str, str]) -> str:
    return next((node_labels[name] for name in names if node_labels.get(name)), "")
