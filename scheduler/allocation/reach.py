"""What shapes find on a state of the cluster: which nodes they reach, and what is free there.

Shapes of one pool and GPU models reach the same nodes, and ask for few different amounts. What they
have in common is worked out once, so that another shape costs a few operations on short columns.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property, lru_cache

import numpy as np

from scheduler.allocation.groups import Fits, Places
from scheduler.model.columns import Floats, Free, Ints, NodeTable
from scheduler.model.counting import in_domains, in_pool, model_codes, of_pool, offering
from scheduler.model.feasible import never_fits
from scheduler.model.job import JobShape, Topology, Worker
from scheduler.model.plan import FunnelStep, Reason
from scheduler.model.quantity import WHOLE_GPU_MILLI

_SHAPES_KEPT = 4_096
"""Shapes whose verdict on the empty cluster is remembered."""


class Reach:
    """The nodes that shapes of one pool, site and GPU models may use, and what is free on them.

    Attributes:
        codes: model codes that they accept.
        in_pool, selected, tolerated, offering: how many nodes are of the pool, of those are asked
            for by the site, of those have no taint that keeps tasks off, and of those such GPUs.
        kept_off: nodes of the pool that the site asks for, but whose taints keep its tasks off.
        usable: the last of these, as rows.
        rows: of those the ones that take new work; all of them with `closed_too`.
        some: of those the ones with any of a GPU free, if the shapes need GPUs: no other row holds
            a task.
    """

    def __init__(self, worker: Worker, free: Free, *, closed_too: bool = False) -> None:
        self.free = free
        self.codes = model_codes(free.table, worker)
        here, inside = of_pool(free.table, worker.pool), in_pool(free.table, worker)
        selected = here & free.table.siting.selected(worker.site)
        offers = inside & offering(free.table, worker, self.codes)
        self.in_pool, self.selected = int(here.sum()), int(selected.sum())
        self.tolerated, self.offering = int(inside.sum()), int(offers.sum())
        self.kept_off = np.flatnonzero(selected & ~inside)
        self.usable = np.flatnonzero(offers)
        self.rows = np.flatnonzero(offers if closed_too else offers & free.table.open)
        self.some = self.rows[free.milli[self.rows] > 0] if worker.milli else self.rows
        self._named = bool(worker.gpu_models)
        self._demands = worker.site.demands
        self._fits = Fits(free.table, Places.of(free, self.some))
        self._amounts: dict[str, tuple[float, float]] = {}

    @cached_property
    def funnel(self) -> tuple[FunnelStep, ...]:
        """Filters in order; those of labels and taints only where somebody speaks of them."""
        table = self.free.table
        steps = [FunnelStep("present", len(table.nodes)), FunnelStep("pool", self.in_pool)]
        if self._demands:
            steps.append(FunnelStep("node-selector", self.selected))
        if table.siting.tainted:
            steps.append(FunnelStep("taints", self.tolerated))
        steps.append(FunnelStep("gpu-model", self.offering))
        steps.append(FunnelStep("schedulable", self.rows.size))
        return tuple(steps)

    def tasks(self, worker: Worker) -> Ints:
        """(some,) tasks that fit each node. The worker's pool and site are those of the reach."""
        return self._fits.counted(worker)

    def amount(self, dimension: str) -> tuple[float, float]:
        """What is free of a dimension: in all, and the most on one node.

        Of GPUs those that are accepted; `shares` counts parts of GPUs too, in GPUs, and the most of
        one GPU.
        """
        if dimension not in self._amounts:
            on_node, largest = self._free_of(dimension)
            self._amounts[dimension] = float(on_node.sum()), float(largest.max(initial=0))
        return self._amounts[dimension]

    def _free_of(self, dimension: str) -> tuple[Floats, Floats]:
        free, rows = self.free, self.rows
        if dimension == "shares":
            gpu = free.gpu[rows] / WHOLE_GPU_MILLI
            if self._named and free.table.mixed:
                gpu = np.where(np.isin(free.table.gpu_model[rows], self.codes), gpu, 0.0)
            return gpu, gpu
        if dimension == "gpus":
            found = free.whole[list(self.codes)][:, rows].sum(axis=0)
        elif dimension in ("cpu_milli", "memory_mib"):
            found = free.cpu[rows] if dimension == "cpu_milli" else free.memory[rows]
        else:
            found = free.amount_of(dimension)[rows]
        return found, found


class View:
    """What of a reach one shape can use, task by task.

    Attributes:
        worker: one task.
        total: tasks that fit.
        tasks: (some,) tasks that fit each node.
    """

    def __init__(self, shape: JobShape, worker: Worker, reach: Reach) -> None:
        self.shape, self.worker, self.reach = shape, worker, reach
        self.tasks = reach.tasks(self.worker)
        self.total = int(self.tasks.sum())

    def starts(self) -> bool:
        """Whether the gang could start here, alone."""
        return self.total >= self.shape.tasks and not self.too_far()

    def too_far(self) -> tuple[str, Ints] | None:
        """What the gang must share, and the tasks that fit each such place, when none holds all."""
        found = self._places()
        return found if found is not None and found[1].max(initial=0) < self.shape.tasks else None

    def _places(self) -> tuple[str, Ints] | None:
        shape, free, codes, rows = self.shape, self.reach.free, self.reach.codes, self.reach.some
        if shape.topology is Topology.SAME_RACK:
            room = np.bincount(free.table.rack[rows], weights=self.tasks, minlength=1)
            return "rack", room.astype(np.int64)
        if shape.topology is Topology.SAME_NVLINK and self.worker.milli:
            inside = in_domains(free, self.worker, codes, rows)
            others = replace(self.worker, needs=replace(self.worker.needs, gpus=0), gpu_milli=0)
            most = self.reach.tasks(others)
            return "NVLink domain", np.minimum(inside, most[:, None]).reshape(-1)
        if shape.topology.one_node:
            if not self.worker.needs.gpus or not free.table.mixed:
                return "node", self.tasks
            names = free.table.models
            narrow = (replace(self.worker, gpu_models=(names[code],)) for code in codes)
            return "node", np.concatenate([self.reach.tasks(worker) for worker in narrow])
        return None


class Reaches:
    """Reaches into one state of the cluster, each worked out once."""

    def __init__(self, free: Free, *, closed_too: bool = False) -> None:
        self.free, self._closed_too = free, closed_too
        self._known: dict[object, Reach] = {}

    def view(self, shape: JobShape) -> View:
        """What `shape` can use."""
        worker = task_of(shape)
        key = (worker.pool, worker.site, worker.gpu_models, worker.milli > 0)
        if key not in self._known:
            self._known[key] = Reach(worker, self.free, closed_too=self._closed_too)
        return View(shape, worker, self._known[key])


def fits_when_empty(shape: JobShape, when_empty: Reaches) -> tuple[bool, Reason | None]:
    """Whether the shape could start if nothing ran and all were well; why not, if that is proved.

    Args:
        shape: what the gang asks.
        when_empty: reaches into `emptied` of the table, closed nodes too. They are asked only about
            shapes that are new to the table.
    """
    table = when_empty.free.table
    known = _known_of(table)
    if shape not in known:
        if len(known) >= _SHAPES_KEPT:
            known.clear()
        fits = when_empty.view(shape).starts()
        known[shape] = fits, None if fits else never_fits(shape, table.nodes)
    return known[shape]


@lru_cache(maxsize=2)
def _known_of(table: NodeTable) -> dict[JobShape, tuple[bool, Reason | None]]:
    """What is known of `table`. Few tables: every cordon makes a new one, and each is large."""
    del table  # the key
    return {}


def task_of(shape: JobShape) -> Worker:
    """One task as a worker of its own."""
    return Worker(
        shape.per_task,
        shape.gpu_milli,
        shape.gpu_models if shape.per_task.gpus or shape.gpu_milli else (),
        shape.pool,
        site=shape.site,
        extras=shape.extras,
    )
