"""The fast packer: one pass over the gangs, each into the tightest place that holds it.

It always runs first, so that an answer always exists; it also turns a set of gangs that the
knapsack admitted into compact placements. Ordering by value per share of the cluster matters far
more than anything else here, so several orders are tried and the most valuable packing wins.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from scheduler.allocation.feasibility import (
    ANY_DOMAIN,
    UNBOUNDED,
    Family,
    Gang,
    Ints,
    Option,
    Problem,
    Spot,
)
from scheduler.allocation.topology import best_subset, mean_pair_bandwidth
from scheduler.model.node import Node
from scheduler.model.plan import Placement, TaskPlacement
from scheduler.model.quantity import GpuId

TIES_MAX = 16
"""How many equally tight spots are compared by their links."""


@dataclass(frozen=True, slots=True)
class Load:
    """`workers` workers of family `family` on its spot number `spot`."""

    family: int
    spot: int
    workers: int


Packing = Mapping[int, tuple[Load, ...]]
"""Loads by index into `Problem.gangs`; a gang is in it whole or not at all."""


def worth(problem: Problem, packing: Packing) -> float:
    """The objective: sum of the values of the packed gangs, added in queue order."""
    return float(sum(problem.gangs[gang].value for gang in sorted(packing)))


def best_greedy(problem: Problem) -> Packing:
    """The most valuable of several greedy packings; the first wins a tie.

    Cost: six passes of `pack`.
    """
    best: Packing = {}
    best_worth = -1.0
    for sequence in _sequences(problem.gangs):
        for models_first in (True, False):
            packing = pack(problem, sequence, models_first=models_first)
            value = worth(problem, packing)
            if value > best_worth * (1 + 1e-12):
                best, best_worth = packing, value
    return best


def by_density(gangs: Sequence[Gang]) -> list[int]:
    """Indexes by value per share of the free cluster, best first, then by rank."""
    return sorted(
        range(len(gangs)), key=lambda gang: (-gangs[gang].value / gangs[gang].share, gang)
    )


def _sequences(gangs: Sequence[Gang]) -> Iterable[list[int]]:
    yield by_density(gangs)
    yield sorted(range(len(gangs)), key=lambda gang: (-gangs[gang].value, gang))
    yield list(range(len(gangs)))


def pack(
    problem: Problem,
    sequence: Iterable[int],
    *,
    base: Packing | None = None,
    models_first: bool = True,
) -> dict[int, tuple[Load, ...]]:
    """Pack gangs one by one, skipping those that no longer fit.

    Args:
        problem: what may go where.
        sequence: indexes into `problem.gangs`.
        base: gangs packed already; they stay where they are.
        models_first: a gang's favourite GPU models count before tightness, else after it.

    Returns:
        the loads of every gang that fitted, with those of `base`. Cost O(gangs * spots) at worst,
        in numpy; a gang like one that failed before costs nothing, because capacity only shrinks.
    """
    left = problem.capacity.copy()
    packing = dict(base or {})
    for loads in packing.values():
        for load in loads:
            _take(problem.families[load.family], load.spot, load.workers, left)
    failed: set[Option] = set()
    for index in sequence:
        if index in packing:
            continue
        for option in _by_room(problem, problem.gangs[index].options, left):
            if option in failed:
                continue
            loads = _place(problem, problem.gangs[index], option, left, models_first=models_first)
            if loads:
                packing[index] = loads
                break
            failed.add(option)
    return packing


def _by_room(problem: Problem, options: Sequence[Option], left: Ints) -> Sequence[Option]:
    """Alternatives with the least room first, so that the large ones stay whole."""
    if len(options) <= 1:
        return options
    room = {option: int(problem.families[option.family].fits_now(left).sum()) for option in options}
    return sorted(options, key=lambda option: (room[option], option.family))


def _place(
    problem: Problem, gang: Gang, option: Option, left: Ints, *, models_first: bool
) -> tuple[Load, ...]:
    """Place all workers and take their bins from `left`; () and `left` as it was when they cannot.

    One spot for the whole gang is best, the tightest that holds it; else spots that hold much of
    it, so that few nodes are used.
    """
    family = problem.families[option.family]
    fits = family.fits_now(left)
    if int(fits.sum()) < option.workers:
        return ()
    tight = left[family.tightness]
    whole = np.flatnonzero(fits >= option.workers)
    if whole.size:
        order = whole[_sorted_by(tight[whole], family.preference[whole], models_first)]
        same = (tight[order] == tight[order[0]]) & (
            family.preference[order] == family.preference[order[0]]
        )
        spot = _best_linked(problem, gang, option, order[same][:TIES_MAX].tolist(), left)
        _take(family, spot, option.workers, left)
        return (Load(option.family, spot, option.workers),)
    held = np.minimum(fits, option.workers) * np.int64(UNBOUNDED) - tight
    loads: list[Load] = []
    missing = option.workers
    for spot in _sorted_by(-held, family.preference, models_first).tolist():
        workers = min(_room(family, spot, left), missing)
        if workers > 0:
            _take(family, spot, workers, left)
            loads.append(Load(option.family, spot, workers))
            missing -= workers
        if not missing:
            return tuple(loads)
    for load in loads:
        _take(family, load.spot, -load.workers, left)
    return ()


def _best_linked(problem: Problem, gang: Gang, option: Option, spots: list[int], left: Ints) -> int:
    """Of equally tight spots the one whose free GPUs are linked best, the first if none stands out.

    A spot that this pass has used already counts as unlinked: its free GPUs are not known yet.
    """
    size = gang.job.shape.per_task.gpus * gang.tasks_per_worker * option.workers
    if len(spots) == 1 or size < 2:  # noqa: PLR2004 - a single GPU has no links
        return spots[0]
    family = problem.families[option.family]

    def bandwidth(number: int) -> float:
        spot, tightness = family.spots[number], family.tightness[number]
        if left[tightness] < problem.capacity[tightness]:
            return 0.0
        site = problem.sites[spot.node]
        free = frozenset(site.free_in(spot.model, spot.domain))
        return mean_pair_bandwidth(site.node.links, best_subset(site.node.links, free, size))

    return max(spots, key=bandwidth)


def _sorted_by(
    tightness: Ints,
    preference: Ints,
    models_first: bool,  # noqa: FBT001 - private; three names say it all
) -> Ints:
    """Spot numbers, best first; equal spots keep their order."""
    keys = (tightness, preference) if models_first else (preference, tightness)
    return np.lexsort(keys).astype(np.int64)


def _room(family: Family, spot: int, left: Ints) -> int:
    """Workers that fit one spot now; spots of one node may share its bins."""
    if not family.needs.size:
        return UNBOUNDED
    return int((left[family.bins[spot]] // family.needs).min())


def _take(family: Family, spot: int, workers: int, left: Ints) -> None:
    left[family.bins[spot]] -= family.needs * workers


@dataclass(frozen=True, slots=True)
class _Block:
    """The GPUs that one load takes: `gpus` are indexes in ring order."""

    spot: Spot
    tasks: int
    gpus: tuple[int, ...]


def place(problem: Problem, packing: Packing, stage: str) -> tuple[Placement, ...]:
    """Complete placements, in queue order.

    Args:
        problem: the problem that was packed.
        packing: a packing that respects its bins.
        stage: who packed it; opens the sentence `why`.
    """
    free = [
        {model: set(gpus) for model, gpus in site.free_by_model.items()} for site in problem.sites
    ]
    blocks: dict[int, list[_Block]] = {}
    for gang, load in _choosing_order(problem, packing):
        entry = problem.gangs[gang]
        spot = problem.families[load.family].spots[load.spot]
        tasks = load.workers * entry.tasks_per_worker
        size = tasks * entry.job.shape.per_task.gpus
        site = problem.sites[spot.node]
        available = frozenset(free[spot.node].get(spot.model, ()))
        if spot.domain != ANY_DOMAIN:
            available &= site.domains[spot.domain]
        gpus = best_subset(site.node.links, available, size)
        if size:
            free[spot.node][spot.model] -= set(gpus)
        blocks.setdefault(gang, []).append(_Block(spot, tasks, gpus))
    return tuple(
        _placement(problem, problem.gangs[gang], blocks[gang], stage) for gang in sorted(packing)
    )


def _choosing_order(problem: Problem, packing: Packing) -> list[tuple[int, Load]]:
    loads = [(gang, load) for gang in sorted(packing) for load in packing[gang]]

    def key(entry: tuple[int, Load]) -> tuple[bool, int, int]:
        gang, load = entry
        spot = problem.families[load.family].spots[load.spot]
        size = load.workers * problem.gangs[gang].job.shape.per_task.gpus
        return (spot.domain == ANY_DOMAIN, -size * problem.gangs[gang].tasks_per_worker, gang)

    return sorted(loads, key=key)


def _placement(problem: Problem, gang: Gang, blocks: list[_Block], stage: str) -> Placement:
    per_task = gang.job.shape.per_task
    tasks: list[TaskPlacement] = []
    for block in sorted(blocks, key=lambda block: (block.spot.node, block.spot.model)):
        node = problem.sites[block.spot.node].node
        ids: Mapping[int, GpuId] = {gpu.index: gpu.id for gpu in node.gpus}
        for number in range(block.tasks):
            own = block.gpus[number * per_task.gpus : (number + 1) * per_task.gpus]
            tasks.append(
                TaskPlacement(
                    len(tasks),
                    node.id,
                    tuple(ids[gpu] for gpu in own),
                    per_task.cpu_milli,
                    per_task.memory_mib,
                )
            )
    return Placement(gang.job.id, tuple(tasks), gang.value, _why(problem, blocks, stage))


def _why(problem: Problem, blocks: list[_Block], stage: str) -> str:
    names = sorted({problem.sites[block.spot.node].node.name for block in blocks})
    where = f"on {names[0]}" if len(names) == 1 else f"on {len(names)} nodes, {names[0]} first"
    if len(blocks) > 1 or not blocks[0].gpus:
        return f"{stage}; {where}"
    block = blocks[0]
    node: Node = problem.sites[block.spot.node].node
    listed = ",".join(str(gpu) for gpu in block.gpus)
    if len(block.gpus) == 1 or not node.links.bandwidth_gbps:
        return f"{stage}; {where}, GPU{'s' if len(block.gpus) > 1 else ''} {listed}"
    links = node.links
    alike = frozenset(gpu.index for gpu in node.gpus if gpu.model == block.spot.model)
    reached = mean_pair_bandwidth(links, block.gpus)
    possible = mean_pair_bandwidth(links, best_subset(links, alike, len(block.gpus)))
    return (
        f"{stage}; {where}, GPUs {listed} mean pair {reached:.3g} GB/s "
        f"(best possible {possible:.3g})"
    )
