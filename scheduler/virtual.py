"""Simulated GPUs for trying things out. Everything here is labelled simulated, everywhere."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from scheduler.errors import ConfigurationError
from scheduler.ids import node_id
from scheduler.model.node import Gpu, Links, Node
from scheduler.model.quantity import GpuId, Resources

_GPUS_PER_NODE_MAX = 16
_NODES_MAX = 5_000
_NODES_PER_RACK = 8
_CPUS_PER_GPU = 16
_MEMORY_MIB_PER_GPU = 128 * 1024
_GROUP = re.compile(r"(\d{1,6})x(\d{1,6}):([A-Za-z0-9.-]{1,32})", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Kind:
    """A GPU model that can be simulated.

    Attributes:
        memory_mib: as nvidia-smi shows it.
        nvlinks: links of a GPU into the switch of its box; 0 for a PCIe card.
        pair_gbps: one-way GB/s between two GPUs of a box.
    """

    memory_mib: int
    nvlinks: int
    pair_gbps: float


_KINDS = {
    "H200": _Kind(143_771, 18, 450.0),
    "H100": _Kind(81_559, 18, 450.0),
    "A100": _Kind(81_920, 12, 300.0),
    "L4": _Kind(23_034, 0, 12.0),
    "T4": _Kind(15_360, 0, 12.0),
}


class VirtualInventory:
    """Nodes that exist only here: `16x8:H100` is 16 nodes of 8 simulated H100 each.

    Args:
        text: groups `<nodes>x<gpus per node>:<model>`, separated by commas.

    Raises:
        ConfigurationError: the text is not that; the message says which part and why.
    """

    def __init__(self, text: str) -> None:
        self._nodes = parse_virtual(text)

    def nodes(self) -> Sequence[Node]:
        """The simulated nodes, always healthy, always the same."""
        return self._nodes


def parse_virtual(text: str) -> tuple[Node, ...]:
    """The nodes that `text` describes, named `virtual-000` on, eight to a rack.

    Raises:
        ConfigurationError: the text is malformed or asks for too much.
    """
    models: list[tuple[str, int]] = []
    for part in text.split(","):
        count, gpus, model = _group(part.strip())
        if len(models) + count > _NODES_MAX:
            raise ConfigurationError(
                f"virtual cluster: with {part.strip()!r} there are {len(models) + count} nodes; "
                f"at most {_NODES_MAX} are simulated"
            )
        models.extend([(model, gpus)] * count)
    return tuple(_node(number, model, gpus) for number, (model, gpus) in enumerate(models))


def _group(part: str) -> tuple[int, int, str]:
    found = _GROUP.fullmatch(part)
    if found is None:
        raise ConfigurationError(
            f"virtual cluster: {part!r} is not <nodes>x<gpus per node>:<model>",
            hint="for example 16x8:H100, or 4x8:H100,2x4:A100",
        )
    count, gpus, model = int(found[1]), int(found[2]), found[3].upper()
    if count < 1:
        raise ConfigurationError(f"virtual cluster: {part!r} asks for no nodes")
    if not 1 <= gpus <= _GPUS_PER_NODE_MAX:
        raise ConfigurationError(
            f"virtual cluster: {part!r} asks for {gpus} GPUs a node; "
            f"1 to {_GPUS_PER_NODE_MAX} are possible"
        )
    if model not in _KINDS:
        raise ConfigurationError(
            f"virtual cluster: {part!r} names an unknown GPU model {found[3]!r}",
            hint=f"known models: {', '.join(_KINDS)}",
        )
    return count, gpus, model


def _node(number: int, model: str, gpus: int) -> Node:
    name = f"virtual-{number:03d}"
    kind = _KINDS[model]
    return Node(
        id=node_id(name),
        name=name,
        capacity=Resources(
            gpus=gpus,
            cpu_milli=gpus * _CPUS_PER_GPU * 1000,
            memory_mib=gpus * _MEMORY_MIB_PER_GPU,
        ),
        gpus=tuple(
            Gpu(
                id=GpuId(f"SIM-{name}-{index}"),
                index=index,
                model=model,
                memory_mib=kind.memory_mib,
            )
            for index in range(gpus)
        ),
        links=Links.uniform(gpus, kind.nvlinks, kind.pair_gbps),
        rack=f"virtual-rack-{number // _NODES_PER_RACK:02d}",
        simulated=True,
    )
