"""Faults that the fake injects: by order (`once`), or by seeded chance.

Whether the n-th request or event meets a fault depends on the seed and on n alone, never on a
clock. Every fault that happened is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np


class Fault(StrEnum):
    """What may go wrong with a request, with a watch, or with one event of a watch."""

    BUSY = "429 with Retry-After, nothing done"
    ERROR_BEFORE = "500, nothing done"
    ERROR_AFTER = "500, yet done"
    UNAVAILABLE_BEFORE = "503, nothing done"
    UNAVAILABLE_AFTER = "503, yet done"
    TIMED_OUT = "504, yet done"
    CONFLICT = "409, nothing done"
    CUT_BEFORE = "connection cut, nothing done"
    REPLY_LOST = "connection cut, yet done"
    DELAY_BEFORE = "late, then done"
    DELAY_AFTER = "done, then answered late"

    LIST_STALE = "list, or first events of a watch, of some versions ago"

    WATCH_GONE = "410 as the HTTP answer to a watch"
    WATCH_EXPIRED = "410 as an ERROR event"
    WATCH_CUT = "watch cut in the middle of a line"
    WATCH_ENDED = "watch ended in good order, early"
    WATCH_SILENT = "watch stays open and says nothing more"

    EVENT_SWALLOWED = "event left out"
    EVENT_TWICE = "event sent twice"
    EVENT_REPLAYED = "earlier event sent again after this one"
    EVENTS_SWAPPED = "event sent after its successor"


REQUEST_FAULTS = tuple(
    fault for fault in Fault if not fault.name.startswith(("WATCH", "EVENT", "LIST"))
)
LIST_FAULTS = (Fault.LIST_STALE,)
WATCH_FAULTS = (Fault.WATCH_GONE, Fault.WATCH_EXPIRED)
STREAM_FAULTS = (Fault.WATCH_CUT, Fault.WATCH_ENDED, Fault.WATCH_SILENT)
EVENT_FAULTS = tuple(fault for fault in Fault if fault.name.startswith("EVENT"))
WRITES = ("create", "update", "patch", "delete", "deletecollection")


@dataclass(frozen=True, slots=True)
class Deed:
    """What a fault may hit: `create` of `pods/binding`, `watch` of `nodes`.

    Attributes:
        verb: as RBAC names it.
        what: plural, and the subresource after a slash.
        user: whose request it is.
    """

    verb: str
    what: str
    user: str


@dataclass(slots=True)
class _Order:
    fault: Fault
    verb: str
    what: str
    times: int
    skip: int

    def fits(self, deed: Deed) -> bool:
        return self.verb in ("", deed.verb) and self.what in ("", deed.what)


class Faults:
    """What goes wrong.

    Args:
        seed: of the chances.
        chances: probability of each fault, each time that it could happen.
        victim: whose requests meet faults by chance; empty for everybody's.
        limit: faults by chance at most; None for no limit. Orders do not count.
        delay_s: how late a late answer is.
        retry_after_s: what 429 says.
        stale_by: versions that a stale list is behind.

    Attributes:
        counts: faults that happened.
    """

    def __init__(
        self,
        seed: int = 0,
        chances: Mapping[Fault, float] | None = None,
        *,
        victim: str = "",
        limit: int | None = None,
        delay_s: float = 0.05,
        retry_after_s: int = 1,
        stale_by: int = 50,
    ) -> None:
        self.counts: Counter[Fault] = Counter()
        self.stale_by = stale_by
        self.delay_s = delay_s
        self.retry_after_s = retry_after_s
        self._chances = dict(chances or {})
        self._victim = victim
        self._limit = limit
        self._by_chance = 0
        self._random = np.random.Generator(np.random.PCG64(seed))
        self._orders: list[_Order] = []

    def once(
        self, fault: Fault, *, verb: str = "", what: str = "", times: int = 1, skip: int = 0
    ) -> None:
        """Have a fault happen the next time that it can.

        Args:
            fault: which.
            verb: only to deeds with this verb.
            what: only to deeds about this resource (`pods/binding`).
            times: how often.
            skip: how many fitting deeds pass before.
        """
        self._orders.append(_Order(fault, verb, what, times, skip))

    def begin(self, chances: Mapping[Fault, float]) -> None:
        """From now on things go wrong by these chances."""
        self._chances = dict(chances)

    def stop(self) -> None:
        """Nothing goes wrong any more."""
        self._orders.clear()
        self._chances.clear()

    @property
    def total(self) -> int:
        """Faults that happened."""
        return self.counts.total()

    def strikes(self, deed: Deed, kinds: tuple[Fault, ...]) -> Fault | None:
        """Which of some faults happens to this deed now, if any; it is counted."""
        fault = self._ordered(deed, kinds) or self._drawn(deed, kinds)
        if fault is not None:
            self.counts[fault] += 1
        return fault

    def _ordered(self, deed: Deed, kinds: tuple[Fault, ...]) -> Fault | None:
        for order in self._orders:
            if order.fault not in kinds or not order.fits(deed):
                continue
            if order.skip > 0:
                order.skip -= 1
                continue
            order.times -= 1
            if order.times == 0:
                self._orders.remove(order)
            return order.fault
        return None

    def _drawn(self, deed: Deed, kinds: tuple[Fault, ...]) -> Fault | None:
        spent = self._limit is not None and self._by_chance >= self._limit
        if not self._chances or spent or self._victim not in ("", deed.user):
            return None
        draw = float(self._random.random())
        for fault in kinds:
            chance = self._chances.get(fault, 0.0)
            if draw < chance:
                self._by_chance += 1
                return fault
            draw -= chance
        return None
