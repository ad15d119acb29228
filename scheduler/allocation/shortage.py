"""Who has the GPUs that a gang lacks, and what would give it enough of them.

What changes with every job that comes or goes is told in words, not in numbers: each new text is
written onto every pod of the gang.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property
from math import inf

import numpy as np

from scheduler.allocation.reach import Reach, View
from scheduler.model.columns import Bools, Ints, NodeTable
from scheduler.model.job import Topology
from scheduler.model.quantity import WHOLE_GPU_MILLI
from scheduler.model.snapshot import LiveAttempt


def whereabouts(view: View, missing: int) -> str:
    """Where the GPUs of the accepted models are, and how many must come free.

    Args:
        view: what a gang that takes whole GPUs finds, once there is a node with such GPUs.
        missing: GPUs that it lacks.

    Cost: O(GPUs that it may use) in numpy, and in Python O(GPUs of nodes where some are closed).
    """
    reach, table = view.reach, view.reach.free.table
    rows = reach.usable
    right = np.isin(table.gpu_model[rows], reach.codes)
    is_open = table.gpu_open[rows] & right
    held = int((is_open & (reach.free.gpu[rows] < WHOLE_GPU_MILLI)).sum())
    closed = right & ~is_open
    others = _external(table, rows[closed.any(axis=1)], reach)
    cordoned = int(closed.sum()) - others
    parts = [
        f"jobs hold {held}" if held else "",
        f"others use {others}" if others else "",
        f"{cordoned} are cordoned or unhealthy" if cordoned else "",
    ]
    told = ", ".join(part for part in parts if part) or "all are free"
    widest = int(right.sum(axis=1).max(initial=0))
    return (
        f"of the {int(right.sum())} it may use, {told}; "
        f"{missing} more must come free{_added(view, widest)}"
    )


def _external(table: NodeTable, rows: Ints, reach: Reach) -> int:
    """GPUs of these rows that somebody uses whom we did not start."""
    accepted = {table.models[code] for code in reach.codes}
    return sum(
        gpu.external and gpu.model in accepted
        for row in rows.tolist()
        for gpu in table.nodes[row].gpus
    )


def _added(view: View, widest: int) -> str:
    """How many more nodes, as large as the largest, would do as well."""
    shape = view.shape
    per_node = widest // max(1, shape.per_task.gpus)
    if not per_node or shape.topology.one_node or shape.topology is Topology.SAME_RACK:
        return ""
    nodes = -(-(shape.tasks - view.total) // per_node)
    return f", or {nodes} more {'node' if nodes == 1 else 'nodes'} of {widest} GPUs"


class Yielding:
    """Which GPUs are held by jobs that may be stopped, by priority.

    Args:
        table: the nodes.
        live: what runs on them.
    """

    def __init__(self, table: NodeTable, live: Collection[LiveAttempt]) -> None:
        self._table, self._live = table, live
        self._known: dict[tuple[Reach, int], int] = {}

    @cached_property
    def _lowest(self) -> float:
        """The lowest priority of a job that may be stopped: nobody is below it. O(live)."""
        return min((a.job.priority for a in self._live if a.job.preemptible), default=inf)

    @cached_property
    def _held(self) -> tuple[Ints, Ints, Ints]:
        """(T,) row, GPUs and priority of each task whose job may be stopped. O(live tasks)."""
        row_of = self._table.row_of
        found = [
            (row_of.get(task.node_id, -1), len(task.gpu_ids), attempt.job.priority)
            for attempt in self._live
            if attempt.job.preemptible
            for task in attempt.tasks
        ]
        row, gpus, priority = np.array(found, dtype=np.int64).reshape(-1, 3).T
        return row, gpus, priority

    def told(self, reach: Reach, priority: int, missing: int) -> str:
        """Whether jobs of lower priority hold as many GPUs as a gang of this priority lacks."""
        lower = self._below(reach, priority) if self._lowest < priority else 0
        if not lower:
            return "no job of lower priority has any"
        return f"jobs of lower priority have {'enough' if lower >= missing else 'too few'}"

    def _below(self, reach: Reach, priority: int) -> int:
        """GPUs held by jobs of less than this priority, on nodes that the reach may use."""
        if (reach, priority) not in self._known:
            row, gpus, of = self._held
            usable: Bools = np.zeros(len(self._table.nodes) + 1, dtype=np.bool_)  # -1 is nowhere
            usable[reach.usable] = True
            self._known[reach, priority] = int(gpus[usable[row] & (of < priority)].sum())
        return self._known[reach, priority]
