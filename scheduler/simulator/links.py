"""How well placements use the links of their nodes, against the exact best subset of GPUs."""

from __future__ import annotations

from collections.abc import Iterable

from scheduler.allocation.topology import best_subset, mean_pair_bandwidth
from scheduler.model.node import Node
from scheduler.model.plan import TaskPlacement
from scheduler.model.quantity import GpuId, NodeId
from scheduler.simulator.result import LinkScore


class LinkQuality:
    """Scores tasks as they are placed. Nodes whose pairs are all alike (a switch) are left out.

    Args:
        nodes: of the cluster.
    """

    def __init__(self, nodes: Iterable[Node]) -> None:
        self._places: dict[NodeId, tuple[Node, dict[GpuId, int]]] = {
            node.id: (node, {gpu.id: gpu.index for gpu in node.gpus})
            for node in nodes
            if _differ(node)
        }
        self._best: dict[tuple[NodeId, int], float] = {}

    def scores(self, tasks: Iterable[TaskPlacement]) -> list[LinkScore]:
        """One for each task with several GPUs on a node that matters."""
        return [
            self._score(task)
            for task in tasks
            if len(task.gpu_ids) > 1 and task.node_id in self._places
        ]

    def _score(self, task: TaskPlacement) -> LinkScore:
        node, index = self._places[task.node_id]
        size = len(task.gpu_ids)
        if (task.node_id, size) not in self._best:
            every = frozenset(range(len(node.gpus)))
            best = best_subset(node.links, every, size)
            self._best[task.node_id, size] = mean_pair_bandwidth(node.links, best)
        chosen = (index[gpu_id] for gpu_id in task.gpu_ids)
        return LinkScore(mean_pair_bandwidth(node.links, chosen), self._best[task.node_id, size])


def _differ(node: Node) -> bool:
    pairs = {
        gbps
        for row, gbps_of_row in enumerate(node.links.bandwidth_gbps)
        for column, gbps in enumerate(gbps_of_row)
        if row != column
    }
    return len(pairs) > 1
