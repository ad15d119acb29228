"""From the relaxation's point to one that starts every gang wholly or not at all, step by step."""

from __future__ import annotations

import numpy as np

from scheduler.allocation.highs import Limits, Program
from scheduler.allocation.knapsack import Knapsack, Relaxed, holds
from scheduler.model.columns import Floats

TORN = 1e-3
"""Parts of a gang below which a start counts as whole."""
NEGLIGIBLE = 5e-4
"""Share of the objective that may stay torn."""
PATIENCE = 8
"""Steps of a dive in a row after which no less is torn than before, and it ends."""
CHEAP = 1e-3
"""Share of the objective that one step may cost without a look at the other way."""


def dive(knapsack: Knapsack, relaxed: Relaxed, limits: Limits, *, steps_max: int) -> Floats | None:
    """A point near the relaxation's that starts every gang wholly or not at all.

    The run torn most is closed at the gangs it has, or opened for one more, whichever costs less;
    then the program is solved again from where it stood, which takes few iterations. Counts of
    workers may stay fractional: real nodes decide about them.

    Returns:
        the least torn point; None when there is none to begin with. The program is left as it was.
    """
    point = relaxed.values
    if point is None:
        return None
    program, arrays = knapsack.program, knapsack.program.arrays
    start = knapsack.outline.fields["start"]
    lower, upper = arrays.lower.copy(), arrays.upper.copy()
    mark = program.mark()
    lowest, since, wholest = np.inf, 0, point
    for _ in range(steps_max):
        value = float(arrays.cost @ point)
        part = point[start] - np.floor(point[start])
        at_stake = np.minimum(part, 1.0 - part) * arrays.cost[start]
        at_stake[np.minimum(part, 1.0 - part) <= TORN] = 0.0
        torn = float(at_stake.sum())
        since += 1
        if torn < lowest:
            lowest, since, wholest = torn, 0, point
        if torn <= NEGLIGIBLE * value or since >= PATIENCE:
            break
        column = int(np.argmax(at_stake)) + start.start
        chosen = _fixed(program, (lower, upper), column, point, limits)
        if chosen is None:
            break
        (lower[column], upper[column]), point = chosen
    program.change(arrays.cost, arrays.lower, arrays.upper, arrays.limit)
    program.reset(mark)
    return wholest


def _fixed(
    program: Program, bounds: tuple[Floats, Floats], column: int, point: Floats, limits: Limits
) -> tuple[tuple[float, float], Floats] | None:
    """A column closed or opened: its bounds and the point then; None if there is none either way.

    The nearer way comes first; if it costs next to nothing, the other is not tried.
    """
    arrays, (lower, upper) = program.arrays, bounds
    value, least = float(arrays.cost @ point), float(np.floor(point[column]))
    ways = [(float(lower[column]), least), (least + 1.0, float(upper[column]))]
    if point[column] - least >= 0.5:  # noqa: PLR2004 - the nearer way first
        ways.reverse()
    best: tuple[float, tuple[float, float], Floats] | None = None
    for way in ways:
        tried_low, tried_high = lower.copy(), upper.copy()
        tried_low[column], tried_high[column] = way
        program.change(arrays.cost, tried_low, tried_high, arrays.limit)
        values = program.relax(limits).values
        if values is None or not holds(program.arrays, values):
            continue
        reached = float(arrays.cost @ values)
        if best is None or reached > best[0]:
            best = (reached, way, values)
        if reached >= (1.0 - CHEAP) * value:
            break
    return None if best is None else best[1:]
