"""Queue orders by name: the only place, next to `scheduler.main` and tests, that names one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from policies.fifo import Fifo
from policies.priority_age import PriorityAge
from scheduler.model.ports import QueueOrder

ORDERS: Mapping[str, Callable[[], QueueOrder]] = {
    PriorityAge.name: PriorityAge,
    Fifo.name: Fifo,
}


def order_named(name: str) -> QueueOrder:
    """A fresh queue order.

    Raises:
        ValueError: no policy has that name; the message lists those that exist.
    """
    try:
        return ORDERS[name]()
    except KeyError:
        raise ValueError(
            f"no queue order is called {name!r}; known: {', '.join(sorted(ORDERS))}"
        ) from None
