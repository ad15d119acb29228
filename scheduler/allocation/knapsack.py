"""The weighted knapsack, written in PuLP. This is the formulation; nothing of it is elsewhere.

Sets: gangs i with options o (a number k of workers of one family), families f with spots s, bins b
(a node's CPU, memory, GPUs of one model, GPUs of one NVLink domain).

Variables:
    start[i,o]  in {0, 1}       gang i starts, using its option o
    count[f,s]  integer >= 0    workers of family f on spot s

Maximise   sum over (i,o) of value[i] * start[i,o]
Subject to
    one[i]:     sum over o of start[i,o] <= 1                               (several options only)
    whole[f]:   sum over s of count[f,s] = sum over (i,o) in f of k[o] * start[i,o]
    bin[b]:     sum over (f,s) drawing from b of need[f,b] * count[f,s] <= capacity[b]
    0 <= count[f,s] <= workers of f that fit spot s alone

Workers of a family are interchangeable, so `count` says everything: all or nothing per gang holds
through `whole`, and which worker sits where is dealt out afterwards. The model is exact: every
integer point is a packing of real nodes. `coarse` builds a relaxation with the same rows, whose
spots are whole groups of nodes.

What a solver returns is rounded, checked in integers against every row, and compared with the
greedy packing. The LP bound is proved here, by weak duality from whatever row prices the solver
reports: for any prices y >= 0 on the `<=` rows, y*b + sum over columns of max(0, c - y*A) * upper
bounds every plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pulp

from scheduler.allocation.feasibility import Ints, Problem
from scheduler.allocation.bins import Load, Packing
from scheduler.allocation.highs import Limits, PulpModel, solve

ROUNDING_TOLERANCE = 1e-4
LP_SLACK = 1e-3


@dataclass(frozen=True, slots=True)
class Knapsack:
    """The model of a problem; columns are all `start`, then all `count`, in key order."""

    problem: Problem
    pulp: PulpModel
    start: Mapping[tuple[int, int], Any]
    count: Mapping[tuple[int, int], Any]

    @property
    def columns(self) -> Sequence[Any]:
        """The model's variables."""
        return self.pulp.columns


def build(problem: Problem) -> Knapsack:
    """Write the model above. O(columns * dimensions); PuLP expressions are built from lists."""
    model = pulp.LpProblem("haversack", pulp.LpMaximize)
    start = {
        (gang, option): model.add_variable(f"start_{gang}_{option}", 0, 1, pulp.LpInteger)
        for gang, entry in enumerate(problem.gangs)
        for option in range(len(entry.options))
    }
    count = {
        (family, spot): model.add_variable(
            f"count_{family}_{spot}", 0, int(entry.fits[spot]), pulp.LpInteger
        )
        for family, entry in enumerate(problem.families)
        for spot in range(len(entry.spots))
    }
    model.setObjective(
        pulp.LpAffineExpression(
            [(column, problem.gangs[gang].value) for (gang, _), column in start.items()]
        )
    )
    rows = [
        *_one_option_rows(problem, start),
        *_whole_rows(problem, start, count),
        *_bin_rows(problem, count),
    ]
    for row in rows:
        model.addConstraint(row)
    return Knapsack(
        problem, PulpModel(model, [*start.values(), *count.values()], rows), start, count
    )


def _row(name: str, terms: list[tuple[Any, float]], sense: int, limit: float) -> Any:
    return pulp.LpConstraint(pulp.LpAffineExpression(terms), sense, name, limit)


def _one_option_rows(problem: Problem, start: Mapping[tuple[int, int], Any]) -> list[Any]:
    return [
        _row(
            f"one_{gang}",
            [(start[gang, option], 1) for option in range(len(entry.options))],
            pulp.LpConstraintLE,
            1,
        )
        for gang, entry in enumerate(problem.gangs)
        if len(entry.options) > 1
    ]


def _whole_rows(
    problem: Problem, start: Mapping[tuple[int, int], Any], count: Mapping[tuple[int, int], Any]
) -> list[Any]:
    terms: list[list[tuple[Any, float]]] = [
        [(count[family, spot], 1) for spot in range(len(entry.spots))]
        for family, entry in enumerate(problem.families)
    ]
    for (gang, option), column in start.items():
        chosen = problem.gangs[gang].options[option]
        terms[chosen.family].append((column, -chosen.workers))
    return [
        _row(f"whole_{family}", row, pulp.LpConstraintEQ, 0) for family, row in enumerate(terms)
    ]


def _bin_rows(problem: Problem, count: Mapping[tuple[int, int], Any]) -> list[Any]:
    """Rows of the bins that could overflow at all."""
    terms: dict[int, list[tuple[Any, float]]] = {}
    most: dict[int, int] = {}
    for (family, spot), column in count.items():
        entry = problem.families[family]
        for number, need in zip(entry.bins[spot].tolist(), entry.needs.tolist(), strict=True):
            terms.setdefault(number, []).append((column, need))
            most[number] = most.get(number, 0) + need * int(entry.fits[spot])
    return [
        _row(f"bin_{number}", row, pulp.LpConstraintLE, int(problem.capacity[number]))
        for number, row in sorted(terms.items())
        if most[number] > problem.capacity[number]
    ]


@dataclass(frozen=True, slots=True)
class Solved:
    """A checked answer.

    Attributes:
        packing: admitted gangs with their loads, or None when there was nothing usable.
        bound: proven upper bound of the objective; `proved` tells whether branch and bound gave
            it (else the LP relaxation).
        admitted: gangs an LP point (almost) fully admits; empty for an exact solve.
        nodes: branch-and-bound nodes explored.
    """

    packing: Packing | None
    bound: float
    proved: bool = False
    admitted: tuple[int, ...] = ()
    nodes: int = 0
    notes: tuple[str, ...] = ()


def relax(knapsack: Knapsack, limits: Limits) -> Solved:
    """Solve the LP relaxation for a certified bound and the gangs it admits."""
    answer = solve(knapsack.pulp, limits, relaxed=True)
    started = [0.0] * len(knapsack.problem.gangs)
    for (gang, _), value in zip(knapsack.start, answer.values or (), strict=False):
        started[gang] += value
    return Solved(
        None,
        weak_dual_bound(knapsack, answer.duals),
        admitted=tuple(gang for gang, value in enumerate(started) if value > 1 - LP_SLACK),
        notes=answer.notes,
    )


def optimise(knapsack: Knapsack, incumbent: Packing, limits: Limits) -> Solved:
    """Solve exactly within `limits`, starting from the greedy `incumbent`.

    Returns:
        a packing that satisfies every row in integers (else None with a note), and the bound of
        branch and bound when the solver reports one.
    """
    answer = solve(knapsack.pulp, limits, start=_point(knapsack, incumbent))
    notes = list(answer.notes)
    packing = None
    if answer.values is not None:
        try:
            packing = _packing(knapsack, answer.values)
        except ValueError as error:
            notes.append(f"solver answer refused: {error}")
    bound = float("inf") if answer.bound is None else answer.bound
    return Solved(packing, bound, answer.bound is not None, (), answer.nodes, tuple(notes))


def weak_dual_bound(knapsack: Knapsack, duals: Sequence[float] | None) -> float:
    """Upper bound proved by row prices, whatever they are; the sum of all values without them.

    O(nonzeros).
    """
    trivial = float(sum(gang.value for gang in knapsack.problem.gangs))
    if duals is None:
        return trivial
    flipped = [-float(dual) for dual in duals]  # solvers disagree about the sign of a maximisation
    return min(trivial, _priced(knapsack, duals), _priced(knapsack, flipped))


def _priced(knapsack: Knapsack, prices: Sequence[float]) -> float:
    objective = knapsack.pulp.problem.objective
    reduced = {column: float(objective.get(column, 0.0)) for column in knapsack.pulp.columns}
    bound = 0.0
    for row, dual in zip(knapsack.pulp.rows, prices, strict=True):
        price = max(0.0, dual) if row.sense == pulp.LpConstraintLE else dual
        if price:
            bound += price * float(row.getUb())
            for column, coefficient in row.items():
                reduced[column] -= price * coefficient
    return bound + float(sum(cost * column.upBound for column, cost in reduced.items() if cost > 0))


def _point(knapsack: Knapsack, packing: Packing) -> list[float]:
    """The packing as a point of the model."""
    values = dict.fromkeys([*knapsack.start.values(), *knapsack.count.values()], 0.0)
    for gang, loads in packing.items():
        families = {load.family for load in loads}
        for option, entry in enumerate(knapsack.problem.gangs[gang].options):
            if entry.family in families:
                values[knapsack.start[gang, option]] = 1.0
        for load in loads:
            values[knapsack.count[load.family, load.spot]] += load.workers
    return list(values.values())


def _packing(knapsack: Knapsack, values: Sequence[float]) -> dict[int, tuple[Load, ...]]:
    """Round, check every row in integers, and deal the workers out to their gangs.

    Raises:
        ValueError: the point is fractional or breaks a row.
    """
    problem = knapsack.problem
    whole = [round(value) for value in values]
    worst = max((abs(value - near) for value, near in zip(values, whole, strict=True)), default=0)
    if worst > ROUNDING_TOLERANCE:
        raise ValueError(f"a value is {worst:.2g} away from an integer")
    split = len(knapsack.start)
    started = [key for key, value in zip(knapsack.start, whole, strict=False) if value]
    counts = dict(zip(knapsack.count, whole[split:], strict=True))
    if len({gang for gang, _ in started}) != len(started):
        raise ValueError("a gang is started twice")
    left = problem.capacity.copy()
    _draw(problem, counts, left)
    return _deal(problem, started, counts)


def _draw(problem: Problem, counts: Mapping[tuple[int, int], int], left: Ints) -> None:
    for (family, spot), workers in counts.items():
        if workers < 0:
            raise ValueError(f"family {family} has {workers} workers on spot {spot}")
        entry = problem.families[family]
        left[entry.bins[spot]] -= entry.needs * workers
    if left.size and int(left.min()) < 0:
        raise ValueError(f"bin {int(left.argmin())} overflows by {-int(left.min())}")


def _deal(
    problem: Problem, started: Sequence[tuple[int, int]], counts: Mapping[tuple[int, int], int]
) -> dict[int, tuple[Load, ...]]:
    """Give each started gang its workers: large gangs first, each on as few spots as possible."""
    room: dict[int, dict[int, int]] = {}
    for (family, spot), workers in counts.items():
        if workers:
            room.setdefault(family, {})[spot] = workers
    packing: dict[int, tuple[Load, ...]] = {}
    chosen = [(problem.gangs[gang].options[option], gang) for gang, option in started]
    for option, gang in sorted(chosen, key=lambda entry: (-entry[0].workers, entry[1])):
        spots = room.get(option.family, {})
        loads: list[Load] = []
        missing = option.workers
        while missing:
            if not spots:
                raise ValueError(f"gang {gang} lacks {missing} workers")
            spot = min(
                spots,
                key=lambda spot: (spots[spot] < missing, abs(spots[spot] - missing), spot),
            )
            workers = min(spots[spot], missing)
            loads.append(Load(option.family, spot, workers))
            missing -= workers
            spots[spot] -= workers
            if not spots[spot]:
                del spots[spot]
        packing[gang] = tuple(loads)
    if any(room.values()):
        raise ValueError("workers without a gang")
    return packing
