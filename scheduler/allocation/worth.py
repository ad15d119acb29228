"""What a placement is worth to the objective: the gang's value, less what its GPUs cost.

The one definition that all packers share; `verify` has its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from scheduler.allocation.gangs import Gang
from scheduler.allocation.room import Loads
from scheduler.model.columns import Floats, NodeTable
from scheduler.model.quantity import WHOLE_GPU_MILLI
from scheduler.model.snapshot import Snapshot
from scheduler.model.terms import EXTRA_WORTH, Terms

Packing = Mapping[int, Loads]
"""What each gang takes, by index into the gangs; a gang is in it whole or not at all."""


class Worth:
    """The objective for one snapshot.

    Attributes:
        gpu_price: (N,) objective units that one GPU costs on each node.
        free_of_charge: whether all of them are 0.
    """

    __slots__ = ("_price", "free_of_charge", "gpu_price")

    def __init__(self, snapshot: Snapshot) -> None:
        self.gpu_price = gpu_prices(snapshot.columns.table, snapshot.terms)
        self.free_of_charge = not self.gpu_price.any()
        self._price: list[float] = self.gpu_price.tolist()

    def of(self, gang: Gang, loads: Loads) -> float:
        """What `gang` is worth on these loads; its value grows with the workers it gets."""
        value = gang.value
        if gang.workers_max > gang.workers:
            extra = sum(load.workers for load in loads) - gang.workers
            value *= 1.0 + EXTRA_WORTH * extra / gang.workers
        if self.free_of_charge:
            return value
        price, cost = self._price, 0.0
        for load in loads:
            cost += load.workers * price[load.row]
        return value - gang.worker.milli / WHOLE_GPU_MILLI * cost

    def total(self, gangs: Sequence[Gang], packing: Packing) -> float:
        """The whole packing's worth, added in queue order."""
        return float(sum(self.of(gangs[index], packing[index]) for index in sorted(packing)))


def gpu_prices(table: NodeTable, terms: Terms) -> Floats:
    """(N,) objective units that one GPU costs on each node; a price of its pool goes first."""
    found = np.zeros(len(table.nodes))
    if not terms.price_weight:
        return found
    for price in sorted(terms.prices, key=lambda price: price.pool is not None):
        if price.price_class not in table.prices:
            continue
        here = table.price == table.prices.index(price.price_class)
        if price.pool is not None:
            pools = {name: code for code, name in enumerate(table.pools)}
            here = here & (table.pool == pools.get(str(price.pool), -1))
        found[here] = terms.price_weight * price.per_gpu_hour
    return found
