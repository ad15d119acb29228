"""Node files: openb's CSV and ours."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.traces import trace

from scheduler.errors import InvalidRequestError
from scheduler.simulator.cluster import described, read_nodes
from scheduler.virtual import parse_virtual

OURS = """nodes:
- {name: a, count: 2, gpus: 8, model: H100, cpus: 128, memory_mib: 1024, rack: r0, nvlinks: 18}
- {name: old, gpus: 4, model: V100, cpus: 0.5, memory_mib: 512, pool: legacy}
- {name: cpu, cpus: 8, memory_mib: 512}
"""


def written(folder: Path, text: str, name: str = "nodes.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_our_file(tmp_path: Path) -> None:
    nodes = read_nodes(written(tmp_path, OURS))
    assert [node.name for node in nodes] == ["a-0000", "a-0001", "old", "cpu"]
    assert [node.capacity.gpus for node in nodes] == [8, 8, 4, 0]
    assert nodes[2].capacity.cpu_milli == 500
    assert (nodes[0].rack, nodes[2].pool) == ("r0", "legacy")
    assert nodes[0].links.nvlinks[0][1] == 18
    assert all(node.simulated for node in nodes)
    assert described(nodes) == "4 nodes, 20 GPUs (2 x 8 H100, 1 x 4 V100, 1 x 0)"


def test_openb_nodes(tmp_path: Path) -> None:
    text = "sn,cpu_milli,memory_mib,gpu,model\nn0,64000,262144,2,P100\nn1,96000,262144,0,\n"
    first, second = read_nodes(written(tmp_path, text, "nodes.csv"))
    assert [gpu.model for gpu in first.gpus] == ["P100", "P100"]
    assert second.capacity.gpus == 0


def test_the_public_node_list() -> None:
    nodes = read_nodes(trace("openb/openb_node_list_gpu_node.csv"))
    assert (len(nodes), sum(node.capacity.gpus for node in nodes)) == (1_213, 6_212)
    assert described(nodes).startswith("1213 nodes, 6212 GPUs (549 x 8 G2, 387 x 2 T4")


def test_boards_whose_pairs_are_not_alike(tmp_path: Path) -> None:
    text = "nodes:\n- {name: a, gpus: 3, cpus: 1, memory_mib: 1, model: V100, nvlinks: MATRIX}"
    matrix = "[[0, 2, 0], [2, 0, 1], [0, 1, 0]]"
    (node,) = read_nodes(written(tmp_path, text.replace("MATRIX", matrix)))
    assert node.links.bandwidth_gbps == ((0.0, 50.0, 12.0), (50.0, 0.0, 25.0), (12.0, 25.0, 0.0))
    for bad in (
        "[[0, 1], [1, 0]]",
        "[[0, 1, 0], [2, 0, 1], [0, 1, 0]]",
        "[[1,0,0],[0,1,0],[0,0,1]]",
    ):
        with pytest.raises(InvalidRequestError, match="symmetric 3 x 3 matrix"):
            read_nodes(written(tmp_path, text.replace("MATRIX", bad)))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("nodes: [", "line 2, column 1: not YAML"),
        ("", "line 1, column 1: the file is empty"),
        ("nodes: []", "line 1, column 8: nodes: List should have"),
        (
            "nodes:\n- {name: a, gpus: 17, cpus: 1, memory_mib: 1}",
            "line 2, column 19: nodes[0].gpus",
        ),
        ("nodes:\n- {name: a, gpu: 1, cpus: 1, memory_mib: 1}", "line 2, column 13: nodes[0].gpu:"),
        ("nodes:\n- {name: a, cpus: 1, memory_mib: 1}", "no node has a GPU"),
        (
            "nodes:" + 2 * "\n- {name: a, gpus: 1, cpus: 1, memory_mib: 1}",
            "a second node 'a'",
        ),
    ],
)
def test_a_bad_file_is_refused_with_its_place(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        read_nodes(written(tmp_path, text))
    assert str(raised.value).startswith(str(tmp_path / "nodes.yaml"))
    assert complaint in str(raised.value)


def test_a_description_of_a_virtual_cluster() -> None:
    assert described(parse_virtual("16x8:H100")) == "16 nodes, 128 GPUs (16 x 8 H100)"
