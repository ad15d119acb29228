"""From loads to placements: tasks in rank order, with the ids of their GPUs and a sentence why.

A gang's GPUs on a node were chosen as one set, in ring order; cutting it into tasks makes
neighbouring ranks neighbours on the ring.
"""

from __future__ import annotations

from collections.abc import Sequence

from scheduler.allocation.gangs import Gang
from scheduler.allocation.room import Load, Loads
from scheduler.allocation.topology import board_of, mean_pair_bandwidth
from scheduler.allocation.worth import Packing, Worth
from scheduler.model.columns import NodeTable
from scheduler.model.node import Node
from scheduler.model.plan import Placement, TaskPlacement
from scheduler.model.quantity import WHOLE_GPU_MILLI, GpuId


def place(
    table: NodeTable, gangs: Sequence[Gang], packing: Packing, worth: Worth, stage: str
) -> tuple[Placement, ...]:
    """Complete placements, in queue order.

    Args:
        table: the nodes that loads speak of.
        gangs: what was packed.
        packing: loads by index into `gangs`.
        worth: the objective.
        stage: who packed it; opens the sentence `why`.
    """
    return tuple(
        placement_of(table, gangs[index], packing[index], worth, stage)
        for index in sorted(packing, key=lambda index: (gangs[index].rank, index))
    )


def placement_of(table: NodeTable, gang: Gang, loads: Loads, worth: Worth, stage: str) -> Placement:
    """One gang's placement."""
    shape = gang.job.shape
    each = 1 if shape.gpu_milli else shape.per_task.gpus
    cpu, memory = shape.per_task.cpu_milli, shape.per_task.memory_mib
    milli, extras = shape.gpu_milli or WHOLE_GPU_MILLI, shape.extras
    tasks: list[TaskPlacement] = []
    loads = _in_rank_order(table, loads)
    for load in loads:
        node = table.nodes[load.row]
        ids = _gpu_ids(node, load.gpus)
        for number in range(load.workers * gang.tasks_per_worker):
            here = ids[number * each : (number + 1) * each]
            tasks.append(TaskPlacement(len(tasks), node.id, here, cpu, memory, milli, extras))
    return Placement(
        gang.job.id, tuple(tasks), worth.of(gang, loads), f"{stage}; {_why(table, gang, loads)}"
    )


def _in_rank_order(table: NodeTable, loads: Loads) -> Loads:
    """Neighbouring ranks on one node, else in one rack, else in one zone; then by node name.

    A ring of collectives goes from rank to rank: so it leaves each rack once, not at every step.
    """
    if len(loads) == 1:
        return loads

    def place(load: Load) -> tuple[str, str, int]:
        node = table.nodes[load.row]
        return node.zone, node.rack, load.row

    return tuple(sorted(loads, key=place))


def _gpu_ids(node: Node, indexes: tuple[int, ...]) -> tuple[GpuId, ...]:
    """Ids of the GPUs with these indexes."""
    gpus = node.gpus
    if gpus and gpus[-1].index == len(gpus) - 1:
        return tuple([gpus[index].id for index in indexes])
    by_index = {gpu.index: gpu.id for gpu in gpus}  # a node that lacks one of its GPUs
    return tuple([by_index[index] for index in indexes])


def _why(table: NodeTable, gang: Gang, loads: Loads) -> str:
    node, gpus = table.nodes[loads[0].row], loads[0].gpus
    if len(loads) > 1:
        return f"on {len(loads)} nodes, {node.name} first"
    if not gpus:
        return f"on {node.name}"
    listed = ",".join(str(gpu) for gpu in gpus)
    if gang.shape.gpu_milli:
        return f"on {node.name}, {gang.shape.gpu_milli} thousandths of GPU {listed}"
    if len(gpus) == 1 or not node.links.bandwidth_gbps:
        return f"on {node.name}, GPU{'s' if len(gpus) > 1 else ''} {listed}"
    reached, possible = _bandwidths(table, loads[0].row, gpus)
    return (
        f"on {node.name}, GPUs {listed} mean pair {reached:.3g} GB/s (best possible {possible:.3g})"
    )


def _bandwidths(table: NodeTable, row: int, gpus: tuple[int, ...]) -> tuple[float, float]:
    """Mean pair GB/s of these GPUs, and of the best as many of their model on an empty node."""
    board = board_of(table.boards[table.board[row]])
    if board.uniform:
        mean = mean_pair_bandwidth(board.links, gpus[:2])
        return mean, mean
    models = table.gpu_model[row].tolist()
    alike = tuple(gpu for gpu, model in enumerate(models) if model == models[gpus[0]])
    if len(alike) < len(gpus):  # GPUs of several models: nothing to compare with
        alike = tuple(sorted(gpus))
    links = board.links
    return mean_pair_bandwidth(links, gpus), mean_pair_bandwidth(
        links, board.best(alike, len(gpus))
    )
