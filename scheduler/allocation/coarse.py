"""A relaxation whose size does not grow with the number of nodes, for clusters too large to solve.

Nodes that no family tells apart (same pool, same GPU models, same rack where racks matter) become
one group. A group's GPUs of one model are described by *slot counts*: for each worker size s, how
many blocks of s free GPUs its nodes hold, sum over n of floor(free[n] / s). A worker of g GPUs
takes floor(g / s) such slots wherever it sits, so every packing of the nodes satisfies the rows
and the optimum bounds every plan; for sizes 1, 2, 4, 8 the rows are nearly all there is to know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from scheduler.allocation.feasibility import ANY_DOMAIN, Family, Problem, Site, Spot, rack_of
from scheduler.model.job import Topology

SLOT_SIZES_MAX = 8

_GroupKey = tuple[str, str, tuple[str, ...]]


@dataclass(slots=True)
class _Groups:
    """Sites by group, and the numbered bins of the groups."""

    problem: Problem
    sizes: tuple[int, ...]
    group_of: list[int] = field(default_factory=list)
    members: list[list[Site]] = field(default_factory=list)
    capacity: list[int] = field(default_factory=list)
    number: dict[tuple[int, str, int], int] = field(default_factory=dict)

    def bin(self, group: int, kind: str, size: int) -> int:
        """The bin's number: `cpu`, `memory`, or slots of `size` GPUs of the model `kind`."""
        key = (group, kind, size)
        if key not in self.number:
            self.number[key] = len(self.capacity)
            self.capacity.append(sum(_amount(site, kind, size) for site in self.members[group]))
        return self.number[key]


def _amount(site: Site, kind: str, size: int) -> int:
    if size:
        return len(site.free_by_model.get(kind, ())) // size
    return site.free.cpu_milli if kind == "cpu" else site.free.memory_mib


def coarsened(problem: Problem) -> Problem:
    """The relaxation of `problem`: same gangs and options, spots merged by group. O(spots)."""
    sizes = sorted({_gpus(problem, family) for family in range(len(problem.families))} - {0})
    groups = _Groups(problem, tuple(sizes[:SLOT_SIZES_MAX]))
    racks = any(gang.job.shape.topology is Topology.SAME_RACK for gang in problem.gangs)
    known: dict[_GroupKey, int] = {}
    for site in problem.sites:
        rack = rack_of(site.node) if racks else ""
        group = known.setdefault((site.node.pool, rack, tuple(site.free_by_model)), len(known))
        groups.group_of.append(group)
        if group == len(groups.members):
            groups.members.append([])
        groups.members[group].append(site)
    families = tuple(_merged(groups, number) for number in range(len(problem.families)))
    return replace(problem, families=families, capacity=np.array(groups.capacity, dtype=np.int64))


def _needs(problem: Problem, number: int) -> tuple[int, int, int]:
    """(cpu_milli, memory_mib, gpus) of one worker of a family."""
    for gang in problem.gangs:
        if any(option.family == number for option in gang.options):
            need = gang.job.shape.per_task * gang.tasks_per_worker
            return need.cpu_milli, need.memory_mib, need.gpus
    raise AssertionError(f"family {number} has no gang")


def _gpus(problem: Problem, number: int) -> int:
    return _needs(problem, number)[2]


def _merged(groups: _Groups, number: int) -> Family:
    """The family over groups instead of nodes."""
    family = groups.problem.families[number]
    cpu, memory, gpus = _needs(groups.problem, number)
    slots = [size for size in groups.sizes if size <= gpus]
    merged: dict[tuple[int, str], int] = {}
    for spot, fits in zip(family.spots, family.fits.tolist(), strict=True):
        key = (groups.group_of[spot.node], spot.model)
        merged[key] = merged.get(key, 0) + fits
    rows = [
        [
            *([groups.bin(group, "cpu", 0)] if cpu else []),
            *([groups.bin(group, "memory", 0)] if memory else []),
            *(groups.bin(group, model, size) for size in slots),
        ]
        for group, model in merged
    ]
    needs = [amount for amount in (cpu, memory) if amount] + [gpus // size for size in slots]
    return _family(merged, rows, needs)


def _family(
    merged: dict[tuple[int, str], int], rows: Sequence[Sequence[int]], needs: Sequence[int]
) -> Family:
    zeros = np.zeros(len(merged), dtype=np.int64)
    return Family(
        tuple(Spot(group, model, ANY_DOMAIN) for group, model in merged),
        np.array(rows, dtype=np.int64).reshape(len(merged), len(needs)),
        np.array(needs, dtype=np.int64),
        zeros,
        zeros,
        np.array(list(merged.values()), dtype=np.int64),
    )
