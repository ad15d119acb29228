"""From counts to GPUs: gives every packed worker its tasks and its exact GPUs.

On each node, gangs bound to an NVLink domain choose first (they can use less), then the larger
ones. A gang's GPUs on a node are chosen as one set, laid out along their best ring and cut into
tasks, so that neighbouring ranks are neighbours on the ring.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from scheduler.allocation.feasibility import ANY_DOMAIN, Gang, Problem, Spot
from scheduler.allocation.greedy import Load, Packing
from scheduler.allocation.topology import best_subset, mean_pair_bandwidth
from scheduler.model.node import Node
from scheduler.model.plan import Placement, TaskPlacement
from scheduler.model.quantity import GpuId


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
