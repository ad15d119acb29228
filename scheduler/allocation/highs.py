"""Solving a PuLP model: HiGHS in memory, CBC when HiGHS is missing or fails.

PuLP's own HiGHS class hands over one column and one row at a time; handing over arrays is ten
times faster. Nothing here believes a solver's status: callers get raw values, and check them.
Limits are counts (nodes, gap), never seconds, so that equal models give equal answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pulp

try:
    import highspy
except ImportError:  # a platform without the wheel: CBC answers
    highspy = None  # type: ignore[assignment]  # a module is absent


@dataclass(frozen=True, slots=True)
class Limits:
    """Deterministic limits of one solve."""

    nodes_max: int
    gap: float
    seed: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What a solver said; to be checked, not believed.

    Attributes:
        values: one per column, or None when there is no primal point.
        duals: one per row for an LP, or None.
        bound: upper bound that branch and bound claims, or None.
        nodes: branch-and-bound nodes explored.
        notes: what went wrong on the way.
    """

    values: Sequence[float] | None
    duals: Sequence[float] | None = None
    bound: float | None = None
    nodes: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PulpModel:
    """A maximisation model with its columns and rows in creation order."""

    problem: Any
    columns: list[Any] = field(default_factory=list)
    rows: list[Any] = field(default_factory=list)


def solve(
    model: PulpModel, limits: Limits, *, relaxed: bool = False, start: Sequence[float] | None = None
) -> Answer:
    """Solve with HiGHS, else with CBC; never raises for a solver's failure.

    Args:
        model: the model; its variables' values are overwritten.
        limits: deterministic limits.
        relaxed: drop integrality and ask for duals.
        start: a feasible point to begin with, one value per column.

    Returns:
        the raw answer; `values` is None when both solvers failed, with both reasons in `notes`.
    """
    notes: list[str] = []
    for name, backend in (("HiGHS", _highs), ("CBC", _cbc)):
        try:
            answer = backend(model, limits, relaxed=relaxed, start=start)
        except Exception as error:  # noqa: BLE001 - a solver may fail in any way; greedy stands
            notes.append(f"{name} failed: {type(error).__name__}: {error}")
            continue
        if answer.values is not None:
            return Answer(
                answer.values, answer.duals, answer.bound, answer.nodes, (*notes, *answer.notes)
            )
        notes.append(f"{name} found no solution within its limits")
    return Answer(None, notes=tuple(notes))


class _BulkHiGHS(pulp.HiGHS):  # type: ignore[misc]  # pulp has no types
    """PuLP's HiGHS with the model passed as arrays, a start, and the raw answer kept."""

    def __init__(
        self, model: PulpModel, *, relaxed: bool, start: Sequence[float] | None, **options: Any
    ) -> None:
        super().__init__(mip=not relaxed, msg=False, **options)
        self.model = model
        self.start = start
        self.answer = Answer(None)

    def buildSolverModel(self, lp: Any) -> None:  # noqa: N802 - PuLP's name
        """Hand the whole model over in one call."""
        columns = self.model.columns
        for number, column in enumerate(columns):
            column.index = number
        arrays = highspy.HighsLp()
        arrays.num_col_ = len(columns)
        arrays.num_row_ = len(self.model.rows)
        arrays.sense_ = highspy.ObjSense.kMaximize
        arrays.col_cost_ = np.array([lp.objective.get(column, 0.0) for column in columns])
        arrays.col_lower_ = np.array([float(column.lowBound) for column in columns])
        arrays.col_upper_ = np.array([float(column.upBound) for column in columns])
        starts, index, value = [0], [], []
        lower, upper = [], []
        for row in self.model.rows:
            for column, coefficient in row.items():
                index.append(column.index)
                value.append(float(coefficient))
            starts.append(len(index))
            low, high = row.getLb(), row.getUb()
            lower.append(-highspy.kHighsInf if low is None else float(low))
            upper.append(highspy.kHighsInf if high is None else float(high))
        arrays.row_lower_, arrays.row_upper_ = np.array(lower), np.array(upper)
        arrays.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        arrays.a_matrix_.start_ = np.array(starts, dtype=np.int32)
        arrays.a_matrix_.index_ = np.array(index, dtype=np.int32)
        arrays.a_matrix_.value_ = np.array(value)
        if self.mip:
            arrays.integrality_ = [
                highspy.HighsVarType.kInteger
                if column.cat == pulp.LpInteger
                else highspy.HighsVarType.kContinuous
                for column in columns
            ]
        lp.solverModel.passModel(arrays)

    def callSolver(self, lp: Any) -> None:  # noqa: N802 - PuLP's name
        """Run, from the given point when there is one."""
        if self.start is not None:
            point = highspy.HighsSolution()
            point.col_value = [float(value) for value in self.start]
            lp.solverModel.setSolution(point)
        lp.solverModel.run()

    def findSolutionValues(self, lp: Any) -> tuple[int, int]:  # noqa: N802 - PuLP's name
        """Keep what HiGHS holds, if it says that it holds a feasible point."""
        info = lp.solverModel.getInfo()
        solution = lp.solverModel.getSolution()
        feasible = info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
        self.answer = Answer(
            values=list(solution.col_value) if feasible else None,
            duals=None if self.mip else list(solution.row_dual),
            bound=float(info.mip_dual_bound) if self.mip else None,
            nodes=max(0, int(info.mip_node_count)) if self.mip else 0,
        )
        return pulp.LpStatusNotSolved, pulp.LpSolutionNoSolutionFound


def _highs(
    model: PulpModel, limits: Limits, *, relaxed: bool, start: Sequence[float] | None
) -> Answer:
    if highspy is None:
        raise ImportError("highspy is not installed")
    options: dict[str, Any] = {"random_seed": limits.seed}
    if relaxed:
        options["presolve"] = "off"  # faster for this LP at every size measured
    else:
        options["mip_max_nodes"] = limits.nodes_max
    solver = _BulkHiGHS(
        model, relaxed=relaxed, start=start, gapRel=limits.gap, threads=1, **options
    )
    model.problem.solve(solver)
    return solver.answer


def _cbc(
    model: PulpModel, limits: Limits, *, relaxed: bool, start: Sequence[float] | None
) -> Answer:
    """CBC through files. It tells no dual bound that can be trusted, so none is given."""
    if start is not None:
        for column, value in zip(model.columns, start, strict=True):
            column.setInitialValue(value)
    solver = pulp.COIN_CMD(
        path=pulp.apis.coin_api.pulp_cbc_path,
        mip=not relaxed,
        msg=False,
        threads=1,
        gapRel=limits.gap,
        maxNodes=limits.nodes_max,
        warmStart=start is not None,
        options=[f"randomSeed {limits.seed}", f"randomCbcSeed {limits.seed}"],
    )
    model.problem.solve(solver)
    if any(column.varValue is None for column in model.columns):
        return Answer(None)
    duals = [row.pi for row in model.rows] if relaxed else None
    known = duals is not None and all(dual is not None for dual in duals)
    return Answer([float(column.varValue) for column in model.columns], duals if known else None)
