"""When nodes fail and come back: exponential times, one stream of random numbers for each node."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Outages:
    """How reliable each node is.

    Attributes:
        mtbf_s: mean seconds from a repair to the next failure.
        mttr_s: mean seconds from a failure to its repair.
    """

    mtbf_s: float
    mttr_s: float


class Mishaps:
    """Draws the times of failures and repairs.

    A node's stream depends on the seed and on its number alone, never on what was placed where, so
    every policy meets the same failures.
    """

    def __init__(self, outages: Outages, nodes: int, seed: int) -> None:
        """Prepare streams for `nodes` nodes. O(nodes)."""
        self._outages = outages
        streams = np.random.SeedSequence(seed).spawn(nodes)
        self._random = [np.random.Generator(np.random.PCG64(stream)) for stream in streams]

    def next_failure_s(self, node: int, now: float) -> float:
        """When the node, well at `now`, fails."""
        return now + float(self._random[node].exponential(self._outages.mtbf_s))

    def next_repair_s(self, node: int, now: float) -> float:
        """When the node, failed at `now`, is back."""
        return now + float(self._random[node].exponential(self._outages.mttr_s))
