"""Pays the solver's import and first-call costs before the first decision."""

from __future__ import annotations

import numpy as np

from scheduler.allocation import knapsack
from scheduler.allocation.feasibility import Problem
from scheduler.allocation.highs import Limits


def warm_up() -> None:
    """Build and solve an empty model. Half a second in a fresh process, then nothing."""
    empty = Problem((), np.zeros(0, dtype=np.int64), (), ())
    knapsack.relax(knapsack.build(empty), Limits(1, 0.0, 0))
