"""A proven bound that needs no model: the fractional knapsack of each resource on its own.

Summed over all nodes and split at will, a resource holds no less than on real nodes; so no plan is
worth more than the densest gangs that it pays for, and the scarcest resource counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from scheduler.model.columns import Free
from scheduler.model.job import JobShape
from scheduler.model.plan import TaskPlacement

Amounts = tuple[int, int, int]
"""GPU thousandths, milli-CPU, MiB."""


def resource_bound(
    free: Free,
    wanted: Sequence[tuple[float, int, Amounts]],
    sellers: Sequence[tuple[float, Amounts]] = (),
) -> float:
    """No plan is worth more, whoever leaves for it. O(n log n).

    Args:
        free: what nobody holds.
        wanted: (value of one, how many, what one needs) of the gangs.
        sellers: (price, what they would free) of those who could leave.
    """
    have = (int(free.milli.sum()), int(free.cpu.sum()), int(free.memory.sum()))
    return min(
        math.fsum(value * count for value, count, _ in wanted),
        *(_bought(wanted, sellers, of, amount) for of, amount in enumerate(have)),
    )


def needs_of(shape: JobShape) -> Amounts:
    """What a gang of this shape needs in its smallest size."""
    return shape.gpu_milli_total, shape.total.cpu_milli, shape.total.memory_mib


def held_by(tasks: Iterable[TaskPlacement]) -> Amounts:
    """What running tasks hold together."""
    milli = cpu = memory = 0
    for task in tasks:
        milli += len(task.gpu_ids) * task.gpu_milli
        cpu += task.cpu_milli
        memory += task.memory_mib
    return milli, cpu, memory


def _bought(
    wanted: Sequence[tuple[float, int, Amounts]],
    sellers: Sequence[tuple[float, Amounts]],
    of: int,
    amount: int,
) -> float:
    """The most that gangs can be worth beyond the price of what they need of resource `of`."""
    if not sellers:
        return _held(wanted, of, amount)
    worth = math.fsum(value * count for value, count, need in wanted if not need[of])
    gangs = sorted(
        ((value / need[of], need[of] * count) for value, count, need in wanted if need[of]),
        reverse=True,
    )
    prices = sorted((price / frees[of], frees[of]) for price, frees in sellers if frees[of])
    supply = [(0.0, amount), *prices]
    at, left = 0, float(supply[0][1])
    for density, need in gangs:
        missing = float(need)
        while missing > 0 and at < len(supply):
            if supply[at][0] >= density:
                return worth
            part = min(missing, left)
            worth += part * (density - supply[at][0])
            missing -= part
            left -= part
            if left <= 0:
                at += 1
                left = float(supply[at][1]) if at < len(supply) else 0.0
    return worth


def _held(wanted: Sequence[tuple[float, int, Amounts]], of: int, amount: int) -> float:
    """As `_bought` where nobody sells: the densest gangs, and the part of one that still fits."""
    value = np.array([value * count for value, count, _ in wanted])
    need = np.array([need[of] * count for _, count, need in wanted], dtype=np.float64)
    asks = need > 0
    worth, value, need = math.fsum(value[~asks].tolist()), value[asks], need[asks]
    order = np.argsort(-value / need, kind="stable")
    left = amount - (np.cumsum(need[order]) - need[order])
    parts = np.clip(left / need[order], 0.0, 1.0)
    return worth + math.fsum((value[order] * parts).tolist())
