"""What may go where: free capacity as bins, and for every gang the ways it could use them.

One description serves the greedy packer and the exact knapsack alike, so they cannot disagree:

- a *bin* is one capacity: a node's CPU, a node's memory, a node's free GPUs of one model, or the
  free GPUs of one NVLink domain;
- a *worker* is what must sit in one piece: a task, or the whole gang when it must stay on one
  node or inside one NVLink domain;
- a *family* is a set of interchangeable workers: the same needs and the same allowed *spots*;
- a gang has one or more *options*, each a number of workers of one family. A gang bound to one
  rack has an option per rack, every other gang has one.

A worker's GPUs are of one model, and GPUs inside a spot are interchangeable here; `gpu_choice`
picks them afterwards. Workers bound to an NVLink domain also count against the node's total, so
any packing that respects the bins can be given real GPUs: domain-bound workers choose first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from scheduler.model.job import JobShape, Topology, WaitingJob
from scheduler.model.node import Node
from scheduler.model.plan import Placement
from scheduler.model.ports import OrderedJob
from scheduler.model.quantity import WHOLE_GPU_MILLI, Resources
from scheduler.model.snapshot import Snapshot

Ints = NDArray[np.int64]
ANY_DOMAIN = -1
UNBOUNDED = 2**31


@dataclass(frozen=True, slots=True)
class Spot:
    """A place for workers of a family.

    Attributes:
        node: index into `Problem.sites`.
        model: GPU model taken here; "" for workers without GPUs.
        domain: index into the node's NVLink domains, or `ANY_DOMAIN`.
    """

    node: int
    model: str
    domain: int


@dataclass(frozen=True, slots=True)
class Family:
    """Interchangeable workers.

    Attributes:
        spots: where a worker may sit; every one fits at least one worker now.
        bins: (spots, dimensions) index of the bin each spot draws from.
        needs: (dimensions,) amount one worker draws; all > 0.
        tightness: (spots,) index of the bin that best fit compares.
        preference: (spots,) 0 for the places the job likes best, then rising.
        fits: (spots,) workers that fit each spot while everything is free.
    """

    spots: tuple[Spot, ...]
    bins: Ints
    needs: Ints
    tightness: Ints
    preference: Ints
    fits: Ints

    def fits_now(self, left: Ints) -> Ints:
        """Workers that still fit each spot, given what is `left` in the bins. O(spots)."""
        return fit_counts(left, self.bins, self.needs)


@dataclass(frozen=True, slots=True)
class Option:
    """One way to place a gang: `workers` workers of family number `family`."""

    family: int
    workers: int


@dataclass(frozen=True, slots=True)
class Gang:
    """A waiting gang that fits somewhere now.

    Attributes:
        value: what starting it is worth.
        share: its dominant share of what is free, > 0; `value / share` is its density.
        options: alternatives, of which at most one is taken.
        tasks_per_worker: tasks each worker stands for.
    """

    job: WaitingJob
    rank: int
    value: float
    share: float
    options: tuple[Option, ...]
    tasks_per_worker: int


@dataclass(frozen=True, slots=True)
class Site:
    """A node with what is free on it.

    Attributes:
        free_by_model: free GPU indexes by model, ascending.
        domains: NVLink domains of the node's GPUs.
    """

    node: Node
    free: Resources
    free_by_model: Mapping[str, tuple[int, ...]]
    domains: tuple[frozenset[int], ...]

    def free_in(self, model: str, domain: int) -> tuple[int, ...]:
        """Free GPU indexes of `model`, inside one domain when `domain` is not `ANY_DOMAIN`."""
        gpus = self.free_by_model.get(model, ())
        if domain == ANY_DOMAIN:
            return gpus
        return tuple(gpu for gpu in gpus if gpu in self.domains[domain])


@dataclass(frozen=True, slots=True)
class Problem:
    """One cycle's packing problem.

    Attributes:
        sites: schedulable nodes with anything free, by (name, id).
        capacity: (bins,) free amount of each bin.
        gangs: in queue order; only those that fit alone, at most as many of one shape as fit.
        skipped: eligible jobs beyond the effort's `order_max`: the bound does not cover them.
    """

    sites: tuple[Site, ...]
    capacity: Ints
    families: tuple[Family, ...]
    gangs: tuple[Gang, ...]
    skipped: int = 0

    @property
    def columns(self) -> int:
        """Columns of the exact model: one per option and one per (family, spot)."""
        return sum(len(gang.options) for gang in self.gangs) + sum(
            len(family.spots) for family in self.families
        )


def fit_counts(left: Ints, bins: Ints, needs: Ints) -> Ints:
    """(spots,) workers that fit each spot: min over dimensions of left // need."""
    if not needs.size:
        return np.full(bins.shape[0], UNBOUNDED, dtype=np.int64)
    counts: Ints = np.minimum((left[bins] // needs).min(axis=1), UNBOUNDED)
    return counts


def sites_of(snapshot: Snapshot, placements: Iterable[Placement] = ()) -> tuple[Site, ...]:
    """Nodes that new work may use, with what is free, sorted by (name, id). O(GPUs).

    Args:
        snapshot: the cluster.
        placements: counted as if they ran already.
    """
    columns = snapshot.columns.changed(
        (), (task for placement in placements for task in placement.tasks)
    )
    free = columns.free
    sites = []
    for row, node in enumerate(columns.table.nodes):
        if not node.schedulable:
            continue
        by_model: dict[str, list[int]] = {}
        for gpu in node.gpus:
            if free.gpu[row, gpu.index] == WHOLE_GPU_MILLI:
                by_model.setdefault(gpu.model, []).append(gpu.index)
        sites.append(
            Site(
                node,
                Resources(
                    sum(len(gpus) for gpus in by_model.values()),
                    int(free.cpu[row]),
                    int(free.memory[row]),
                ),
                {model: tuple(sorted(gpus)) for model, gpus in sorted(by_model.items())},
                node.links.domains() or tuple(frozenset({gpu.index}) for gpu in node.gpus),
            )
        )
    return tuple(sites)


@dataclass(frozen=True, slots=True)
class _FamilyKey:
    """What makes workers interchangeable."""

    per_worker: Resources
    models: tuple[str, ...]
    pool: str | None
    one_domain: bool
    rack: str | None


@dataclass(slots=True)
class _Bins:
    """Numbers the bins of a cluster."""

    sites: Sequence[Site]
    capacity: list[int] = field(default_factory=list)
    number: dict[tuple[int, str, int], int] = field(default_factory=dict)

    def of(self, node: int, kind: str, domain: int = ANY_DOMAIN) -> int:
        """The bin's number; `kind` is `cpu`, `memory` or `gpu:<model>`."""
        key = (node, kind, domain)
        if key not in self.number:
            self.number[key] = len(self.capacity)
            self.capacity.append(self._amount(node, kind, domain))
        return self.number[key]

    def _amount(self, node: int, kind: str, domain: int) -> int:
        site = self.sites[node]
        if kind == "cpu":
            return site.free.cpu_milli
        if kind == "memory":
            return site.free.memory_mib
        return len(site.free_in(kind.removeprefix("gpu:"), domain))


def problem_of(
    snapshot: Snapshot, ordered: Sequence[OrderedJob], *, order_max: int = UNBOUNDED
) -> Problem:
    """The packing problem of a snapshot.

    Of each shape only the most valuable gangs are kept, as many as could fit an otherwise idle
    cluster: equal shapes are interchangeable, so no better plan is lost.

    Args:
        snapshot: the cluster and who waits.
        ordered: eligible jobs, best first.
        order_max: look at this many jobs of the front after that cut.

    Returns:
        the problem. Cost O(GPUs + shapes * nodes + jobs log jobs).
    """
    sites = sites_of(snapshot)
    bins = _Bins(sites)
    families: dict[_FamilyKey, tuple[int, Family]] = {}
    by_shape: dict[JobShape, list[OrderedJob]] = {}
    by_class: dict[str, list[OrderedJob]] = {}  # a string hashes faster than a shape
    for entry in ordered:
        by_class.setdefault(entry.job.class_key, []).append(entry)
    for entries in by_class.values():
        by_shape.setdefault(entries[0].job.shape, []).extend(entries)
    gangs: list[Gang] = []
    total = sum((site.free for site in sites), Resources())
    for shape, entries in by_shape.items():
        options, most = _options(shape, sites, bins, families)
        entries.sort(key=lambda entry: (-entry.value, entry.rank))
        gangs.extend(
            Gang(
                entry.job,
                entry.rank,
                entry.value,
                dominant_share(shape.total, total),
                options,
                shape.tasks if shape.topology.one_node else 1,
            )
            for entry in entries[:most]
        )
    gangs.sort(key=lambda gang: gang.rank)
    used = {option.family for gang in gangs[:order_max] for option in gang.options}
    return _renumbered(
        Problem(
            sites,
            np.array(bins.capacity, dtype=np.int64),
            tuple(family for _, family in families.values()),
            tuple(gangs[:order_max]),
            skipped=max(0, len(gangs) - order_max),
        ),
        used,
    )


def dominant_share(need: Resources, free: Resources) -> float:
    """The largest fraction of anything free that `need` takes; > 0 even for an empty need."""
    return max(
        1e-9,
        need.gpus / max(1, free.gpus),
        need.cpu_milli / max(1, free.cpu_milli),
        need.memory_mib / max(1, free.memory_mib),
    )


def _renumbered(problem: Problem, used: set[int]) -> Problem:
    """The problem without the families that no kept gang uses."""
    numbers = {old: new for new, old in enumerate(sorted(used))}
    gangs = tuple(
        Gang(
            gang.job,
            gang.rank,
            gang.value,
            gang.share,
            tuple(Option(numbers[option.family], option.workers) for option in gang.options),
            gang.tasks_per_worker,
        )
        for gang in problem.gangs
    )
    families = tuple(problem.families[old] for old in sorted(used))
    return Problem(problem.sites, problem.capacity, families, gangs, problem.skipped)


def _options(
    shape: JobShape,
    sites: Sequence[Site],
    bins: _Bins,
    families: dict[_FamilyKey, tuple[int, Family]],
) -> tuple[tuple[Option, ...], int]:
    """A shape's options, and how many gangs of it could start on the free cluster at most."""
    one_node = shape.topology.one_node
    per_worker = shape.total if one_node else shape.per_task
    workers = 1 if one_node else shape.tasks
    racks: Iterable[str | None] = (None,)
    if shape.topology is Topology.SAME_RACK:
        racks = sorted({rack_of(site.node) for site in sites})
    options = []
    most = 0
    for rack in racks:
        key = _FamilyKey(
            per_worker,
            shape.gpu_models if per_worker.gpus else (),
            shape.pool,
            shape.topology is Topology.SAME_NVLINK and per_worker.gpus > 0,
            rack,
        )
        if key not in families:
            families[key] = (len(families), _family(key, sites, bins))
        number, family = families[key]
        fitting = int(family.fits.sum()) // workers
        if fitting:
            options.append(Option(number, workers))
            most += fitting
    return tuple(options), most


def rack_of(node: Node) -> str:
    """The node's rack; a node without a label is a rack of its own."""
    return node.rack or f"\0{node.id}"


def _family(key: _FamilyKey, sites: Sequence[Site], bins: _Bins) -> Family:
    need = key.per_worker
    spots: list[Spot] = []
    rows: list[list[int]] = []
    tightness: list[int] = []
    preference: list[int] = []
    for number, site in enumerate(sites):
        if key.pool is not None and site.node.pool != key.pool:
            continue
        if key.rack is not None and rack_of(site.node) != key.rack:
            continue
        shared = []
        if need.cpu_milli:
            shared.append(bins.of(number, "cpu"))
        if need.memory_mib:
            shared.append(bins.of(number, "memory"))
        if not need.gpus:
            spots.append(Spot(number, "", ANY_DOMAIN))
            rows.append(shared)
            tightness.append(bins.of(number, "cpu"))
            preference.append(1 if site.free.gpus else 0)
            continue
        for model in key.models or site.free_by_model:
            whole = bins.of(number, f"gpu:{model}")
            liked = key.models.index(model) if key.models else 0
            domains = range(len(site.domains)) if key.one_domain else (ANY_DOMAIN,)
            for domain in domains:
                spots.append(Spot(number, model, domain))
                own = [bins.of(number, f"gpu:{model}", domain)] if key.one_domain else []
                rows.append([*shared, whole, *own])
                tightness.append(own[0] if own else whole)
                preference.append(liked)
    amounts = [amount for amount in (need.cpu_milli, need.memory_mib, need.gpus) if amount]
    if key.one_domain:
        amounts.append(need.gpus)
    return _fitting(spots, rows, amounts, tightness, preference, bins)


def _fitting(
    spots: list[Spot],
    rows: list[list[int]],
    amounts: list[int],
    tightness: list[int],
    preference: list[int],
    bins: _Bins,
) -> Family:
    """The family without the spots that cannot hold a single worker."""
    index = np.array(rows, dtype=np.int64).reshape(len(spots), len(amounts))
    needs = np.array(amounts, dtype=np.int64)
    fits = fit_counts(np.array(bins.capacity, dtype=np.int64), index, needs)
    keep = np.flatnonzero(fits > 0)
    return Family(
        tuple(spots[spot] for spot in keep),
        index[keep],
        needs,
        np.array(tightness, dtype=np.int64)[keep],
        np.array(preference, dtype=np.int64)[keep],
        fits[keep],
    )
