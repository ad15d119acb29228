"""Simulated GPUs."""

from __future__ import annotations

import re

import pytest

from scheduler.errors import ConfigurationError
from scheduler.ids import node_id
from scheduler.model.ports import Inventory
from scheduler.virtual import VirtualInventory, parse_virtual


def test_sixteen_boxes_of_eight() -> None:
    inventory: Inventory = VirtualInventory("16x8:H100")
    nodes = inventory.nodes()
    assert [node.name for node in nodes] == [f"virtual-{n:03d}" for n in range(16)]
    assert len({node.id for node in nodes}) == 16
    assert all(node.simulated for node in nodes)
    assert {node.rack for node in nodes} == {"virtual-rack-00", "virtual-rack-01"}
    first = nodes[0]
    assert [gpu.id for gpu in first.gpus] == [f"SIM-virtual-000-{n}" for n in range(8)]
    assert [gpu.index for gpu in first.gpus] == list(range(8))
    assert first.capacity.gpus == 8
    assert first.capacity.cpu_milli == 128_000
    assert first.capacity.memory_mib == 8 * 128 * 1024
    assert first.links.nvlinks[0] == (0, *[18] * 7)
    assert first.links.bandwidth_gbps[7][0] == 450.0
    assert first.links.domains() == (frozenset(range(8)),)
    assert nodes == VirtualInventory("16x8:H100").nodes()


def test_groups_of_different_models() -> None:
    nodes = parse_virtual("4x8:H100, 2x4:a100,1x2:T4")
    assert [(len(node.gpus), node.gpus[0].model) for node in nodes] == [
        *[(8, "H100")] * 4,
        *[(4, "A100")] * 2,
        (2, "T4"),
    ]
    assert nodes[6].links.nvlinks == ((0, 0), (0, 0))
    assert nodes[6].links.bandwidth_gbps == ((0.0, 12.0), (12.0, 0.0))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "'' is not <nodes>x<gpus per node>:<model>"),
        ("16x8", "'16x8' is not"),
        ("4x8:H100,", "'' is not"),
        ("-1x8:H100", "'-1x8:H100' is not"),
        ("0x8:H100", "asks for no nodes"),
        ("1x0:H100", "0 GPUs a node; 1 to 16"),
        ("1x17:H100", "17 GPUs a node"),
        ("1x8:Z80", "unknown GPU model 'Z80'"),
        ("999999x1:H100", "at most 5000"),
        ("٤x8:H100", "is not <nodes>"),
    ],
)
def test_a_bad_text_is_refused_by_name(text: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=r"virtual cluster") as raised:
        VirtualInventory(text)
    assert complaint in str(raised.value)


def test_node_ids_depend_on_the_identity_alone() -> None:
    first = node_id("one")
    assert re.fullmatch(r"n-[0-9a-v]{16}", first)
    assert node_id("one") == first
    assert node_id("two") != first
