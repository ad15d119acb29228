"""The fast packer: passes over the gangs, each gang into the best place that holds it.

It always runs first, so that an answer always exists. Ordering by value per share of the cluster
matters far more than anything else here; on small clusters, where one wrong choice is a large part
of the whole, several orders are tried and the most valuable packing wins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from scheduler.allocation.gangs import Gang
from scheduler.allocation.room import Loads, Room
from scheduler.allocation.worth import Packing, Worth
from scheduler.model.columns import Free

ALL_PASSES_NODES_MAX = 400
"""On more nodes only the pass by density runs: others win nothing there, and the time is better
spent on the linear program."""
BETTER = 1e-12
"""Relative difference below which two packings are worth the same."""


def best_greedy(
    rooms: Callable[[], Room], gangs: Sequence[Gang], worth: Worth, *, most: int | None = None
) -> dict[int, Loads]:
    """The most valuable of several greedy packings; the first wins a tie.

    Args:
        rooms: makes a fresh room of what is free.
        gangs: what waits, in queue order.
        worth: the objective.
        most: how many gangs may start.

    Returns:
        loads by index into `gangs`. As soon as a pass places all gangs, in their largest sizes, no
        other is tried: where prices do not differ nothing can be worth more.

    Cost: one pass of `pack` on large clusters, up to six on small ones.
    """
    best: dict[int, Loads] = {}
    best_worth = -1.0
    for order, models_first in _passes(rooms, gangs):
        packing = pack(rooms(), gangs, order, worth, most=most, models_first=models_first)
        value = worth.total(gangs, packing)
        if value > best_worth * (1 + BETTER):
            best, best_worth = packing, value
        if complete(gangs, packing):
            break
    return best


def _passes(
    rooms: Callable[[], Room], gangs: Sequence[Gang]
) -> Iterable[tuple[Sequence[int], bool]]:
    free = rooms().free
    orders: list[Sequence[int]] = [by_density(gangs, free)]
    if len(free.table.nodes) <= ALL_PASSES_NODES_MAX:
        orders.append(sorted(range(len(gangs)), key=lambda gang: (-gangs[gang].value, gang)))
        orders.append(range(len(gangs)))
    choosy = any(len(gang.worker.gpu_models) > 1 for gang in gangs)
    for order in orders:
        for models_first in (True, False) if choosy else (True,):
            yield order, models_first


def complete(gangs: Sequence[Gang], packing: Packing) -> bool:
    """Whether every gang is placed in its largest size."""
    return len(packing) == len(gangs) and all(
        gang.workers == gang.workers_max
        or sum(load.workers for load in packing[index]) == gang.workers_max
        for index, gang in enumerate(gangs)
    )


def by_density(gangs: Sequence[Gang], free: Free) -> list[int]:
    """Indexes by value per share of what is free, best first, then by rank. O(n log n)."""
    shares: dict[str, float] = {}
    amounts = (
        max(1, int(free.milli.sum())),
        max(1, int(free.cpu.sum())),
        max(1, int(free.memory.sum())),
    )
    densities = np.empty(len(gangs))
    for index, gang in enumerate(gangs):
        share = shares.get(gang.job.class_key)
        if share is None:
            share = shares[gang.job.class_key] = dominant_share(gang, amounts)
        densities[index] = gang.value / share
    order: list[int] = np.argsort(-densities, kind="stable").tolist()
    return order


def dominant_share(gang: Gang, amounts: tuple[int, int, int]) -> float:
    """The largest fraction that the gang takes of any amount: GPU thousandths, milli-CPU, MiB.

    It is > 0 even for a gang that needs nothing.
    """
    needs, workers = gang.worker.needs, gang.workers
    return max(
        1e-9,
        gang.worker.milli * workers / amounts[0],
        needs.cpu_milli * workers / amounts[1],
        needs.memory_mib * workers / amounts[2],
    )


def pack(
    room: Room,
    gangs: Sequence[Gang],
    order: Iterable[int],
    worth: Worth,
    *,
    packing: Packing | None = None,
    most: int | None = None,
    models_first: bool = True,
) -> dict[int, Loads]:
    """Place gangs one by one, passing over those that do not fit or cost more than they are worth.

    Elastic gangs get their smallest size first; what is left when all had their turn goes to them
    in the same order.

    Args:
        room: where; what is placed is taken from it.
        gangs: all of them.
        order: indexes into `gangs`, first come first served.
        worth: the objective.
        packing: gangs placed already, whose loads the room has given; they stay.
        most: how many gangs may be in the result.
        models_first: as in `Room.place`.

    Returns:
        the loads of all that were placed, with those of `packing`.
    """
    placed = dict(packing or {})
    elastic = []
    for index in order:
        gang = gangs[index]
        if index in placed:
            if gang.workers_max > gang.workers:
                elastic.append(index)
            continue
        if most is not None and len(placed) >= most:
            break
        before = room.mark()
        loads = room.place(gang, models_first=models_first)
        if loads is None:
            continue
        if not worth.free_of_charge and worth.of(gang, loads) <= 0:
            room.undo(before)
            continue
        placed[index] = loads
        if gang.workers_max > gang.workers:
            elastic.append(index)
    for index in elastic:
        placed[index] = grown(room, gangs[index], placed[index], worth)
    return placed


def grown(room: Room, gang: Gang, loads: Loads, worth: Worth) -> Loads:
    """The loads of an elastic gang after it took what is left, if that is worth its price."""
    before = room.mark()
    more = room.grow(gang, loads)
    if more is loads or worth.of(gang, more) > worth.of(gang, loads):
        return more
    room.undo(before)
    return loads
