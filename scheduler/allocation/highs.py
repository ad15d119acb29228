"""Solving a PuLP model: HiGHS in memory, CBC when HiGHS is missing or fails.

PuLP's own HiGHS class hands over one column and one row at a time, and cannot solve again; here the
model goes over as arrays, ten times faster, and a linear program stays alive in its solver: with
new costs, bounds or right-hand sides it goes on from its last basis.

Nothing here believes a solver's status: callers get raw values, and check them. Limits are counts
(nodes, iterations, gap), never seconds, so that equal models give equal answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pulp
from numpy.typing import NDArray

from scheduler.model.columns import Bools, Floats

try:
    import highspy
except ImportError:  # a platform without the wheel: CBC answers
    highspy = None  # type: ignore[assignment]  # a module is absent

Codes = NDArray[np.int32]
CHECKS_MAX = 60
"""How often branch and bound may come by the place where it asks whether to stop. At the root node
alone that is once for each round of cuts: node limits do not hold it back there."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Deterministic limits of one solve.

    Attributes:
        nodes_max: branch-and-bound nodes.
        gap: relative gap that is good enough.
        seed: of the solver.
        iterations_max: simplex iterations of a linear program.
    """

    nodes_max: int
    gap: float
    seed: int
    iterations_max: int = 200_000


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

    values: Floats | None
    duals: Floats | None = None
    bound: float | None = None
    nodes: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PulpModel:
    """A maximisation model with its columns and rows in creation order.

    Rows need not be added to `problem`: that takes as long as writing them, and only CBC, which
    reads the problem from a file, wants it. It is done then.
    """

    problem: Any
    columns: Sequence[Any]
    rows: Sequence[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Arrays:
    """A maximisation model as arrays: C columns, R rows (`<=` or `=`), row-wise coefficients.

    Attributes:
        cost, lower, upper: (C,).
        limit: (R,) right-hand sides.
        equal: (R,) rows that hold with equality.
        starts: (R + 1,) where each row begins in `index` (column) and `value`.
    """

    cost: Floats
    lower: Floats
    upper: Floats
    limit: Floats
    equal: Bools
    starts: Codes
    index: Codes
    value: Floats

    def priced(self, prices: Floats) -> Floats:
        """(C,) what is left of each column's cost when rows cost these prices: c - y A."""
        each = np.repeat(prices, np.diff(self.starts))
        return self.cost - np.bincount(
            self.index, weights=self.value * each, minlength=self.cost.size
        )

    def activity(self, point: Floats) -> Floats:
        """(R,) the rows' left-hand sides at a point: A x."""
        row = np.repeat(np.arange(self.limit.size), np.diff(self.starts))
        sums = np.bincount(row, weights=self.value * point[self.index], minlength=self.limit.size)
        return sums.astype(np.float64)


def arrays_of(model: PulpModel) -> Arrays:
    """Read a PuLP model, once. O(nonzeros)."""
    for number, column in enumerate(model.columns):
        column.index = number  # PuLP's hash of a column is slow Python
    cost = np.zeros(len(model.columns))
    for column, coefficient in model.problem.objective.items():
        cost[column.index] = coefficient
    index: list[int] = []
    value: list[float] = []
    starts = [0]
    for row in model.rows:
        index += [column.index for column in row.expr]
        value += row.expr.values()
        starts.append(len(index))
    return Arrays(
        cost,
        np.array([column.lowBound for column in model.columns], dtype=np.float64),
        np.array([column.upBound for column in model.columns], dtype=np.float64),
        np.array([-row.constant for row in model.rows], dtype=np.float64),
        np.array([row.sense == pulp.LpConstraintEQ for row in model.rows], dtype=np.bool_),
        np.array(starts, dtype=np.int32),
        np.array(index, dtype=np.int32),
        np.array(value, dtype=np.float64),
    )


class Program:
    """A model that is solved, changed and solved again.

    Args:
        model: the model; its PuLP objects serve only to fall back on CBC.
    """

    def __init__(self, model: PulpModel) -> None:
        self.model = model
        self.arrays = arrays_of(model)
        self._warm: Any = None

    def change(self, cost: Floats, lower: Floats, upper: Floats, limit: Floats) -> None:
        """New numbers, same coefficients; what does not differ is not touched."""
        before = self.arrays
        self.arrays = replace(before, cost=cost, lower=lower, upper=upper, limit=limit)
        if self._warm is None:
            return
        solver = self._warm
        if (changed := np.flatnonzero(cost != before.cost)).size:
            solver.changeColsCost(changed.size, changed.astype(np.int32), cost[changed])
        moved = (lower != before.lower) | (upper != before.upper)
        if (changed := np.flatnonzero(moved)).size:
            solver.changeColsBounds(
                changed.size, changed.astype(np.int32), lower[changed], upper[changed]
            )
        for row in np.flatnonzero(limit != before.limit).tolist():
            low = limit[row] if before.equal[row] else -highspy.kHighsInf
            solver.changeRowBounds(row, low, limit[row])

    def relax(self, limits: Limits) -> Answer:
        """Solve without integrality, from the last basis if there is one; never raises.

        Returns:
            values and row prices (either may be None), with what went wrong in `notes`.
        """
        return self._first(
            ("HiGHS", lambda: self._highs_lp(limits)),
            ("CBC", lambda: _cbc(self.model, self.arrays, limits, relaxed=True, start=None)),
        )

    def mark(self) -> Any:
        """Where the live program stands, to `reset` to after detours; None when it is not live."""
        return None if self._warm is None else self._warm.getBasis()

    def reset(self, mark: Any) -> None:
        """Go on from where the program stood at `mark`."""
        if self._warm is not None and mark is not None:
            self._warm.setBasis(mark)

    def solve(self, limits: Limits, start: Floats | None = None) -> Answer:
        """Solve in integers, from a feasible point if there is one; never raises."""
        return self._first(
            ("HiGHS", lambda: _highs_mip(self.arrays, limits, start)),
            ("CBC", lambda: _cbc(self.model, self.arrays, limits, relaxed=False, start=start)),
        )

    def _first(self, *backends: tuple[str, Any]) -> Answer:
        """The first answer with as many finite values as there are columns."""
        notes: list[str] = []
        for name, backend in backends:
            try:
                answer: Answer = backend()
            except Exception as error:  # noqa: BLE001 - a solver may fail in any way; greedy stands
                self._warm = None
                notes.append(f"{name} failed: {type(error).__name__}: {error}")
                continue
            wrong = _shape_error(answer, self.arrays)
            if not wrong:
                return replace(answer, notes=(*notes, *answer.notes))
            self._warm = None
            notes.append(f"{name} {wrong}")
        return Answer(None, notes=tuple(notes))

    def _highs_lp(self, limits: Limits) -> Answer:
        if highspy is None:
            raise ImportError("highspy is not installed")
        if self._warm is None:
            self._warm = _loaded(self.arrays, limits)
            self._warm.setOptionValue("presolve", "off")  # faster for this LP at every size
            self._warm.setOptionValue("solver", "simplex")
        self._warm.setOptionValue("simplex_iteration_limit", limits.iterations_max)
        self._warm.run()
        solution = self._warm.getSolution()
        return Answer(_floats(solution.col_value), _floats(solution.row_dual))


def _shape_error(answer: Answer, arrays: Arrays) -> str:
    if answer.values is None:
        return "found no solution within its limits"
    if answer.values.shape != arrays.cost.shape:
        return f"gave {answer.values.size} values for {arrays.cost.size} columns"
    if not np.isfinite(answer.values).all():
        return "gave values that are no numbers"
    return ""


def _floats(values: Sequence[Any]) -> Floats:
    return np.array(values, dtype=np.float64)


def highs_model(arrays: Arrays) -> Any:
    """The arrays as HiGHS takes them, in one piece."""
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = arrays.cost.size, arrays.limit.size
    lp.sense_ = highspy.ObjSense.kMaximize
    lp.col_cost_, lp.col_lower_, lp.col_upper_ = arrays.cost, arrays.lower, arrays.upper
    lp.row_lower_ = np.where(arrays.equal, arrays.limit, -highspy.kHighsInf)
    lp.row_upper_ = arrays.limit
    lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    lp.a_matrix_.start_ = arrays.starts
    lp.a_matrix_.index_ = arrays.index
    lp.a_matrix_.value_ = arrays.value
    return lp


def _loaded(arrays: Arrays, limits: Limits, *, integer: bool = False) -> Any:
    """A fresh solver that holds the model."""
    lp = highs_model(arrays)
    if integer:
        lp.integrality_ = [highspy.HighsVarType.kInteger] * arrays.cost.size
    solver = highspy.Highs()
    for name, value in (
        ("output_flag", False),
        ("threads", 1),
        ("random_seed", limits.seed),
        ("mip_rel_gap", limits.gap),
    ):
        solver.setOptionValue(name, value)
    solver.passModel(lp)
    return solver


def _highs_mip(arrays: Arrays, limits: Limits, start: Floats | None) -> Answer:
    if highspy is None:
        raise ImportError("highspy is not installed")
    solver = _loaded(arrays, limits, integer=True)
    solver.setOptionValue("mip_max_nodes", limits.nodes_max)
    if start is not None:
        point = highspy.HighsSolution()
        point.col_value = start.tolist()
        solver.setSolution(point)
    checks = 0

    def check(event: Any) -> None:
        nonlocal checks
        checks += 1
        if checks > CHECKS_MAX:
            event.interrupt()

    solver.cbMipInterrupt += check
    solver.run()
    info = solver.getInfo()
    values = _floats(solver.getSolution().col_value)
    # Without a point HiGHS gives zeros: harmless, for callers compare with what they have.
    return Answer(values, None, float(info.mip_dual_bound), nodes=max(0, int(info.mip_node_count)))


def _cbc(
    model: PulpModel, arrays: Arrays, limits: Limits, *, relaxed: bool, start: Floats | None
) -> Answer:
    """CBC through files. It tells no dual bound that can be trusted, so none is given."""
    _write_back(model, arrays)
    if start is not None:
        for column, value in zip(model.columns, start.tolist(), strict=True):
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
    values = [column.varValue for column in model.columns]
    if any(value is None for value in values):
        return Answer(None)
    duals = [row.pi for row in model.rows] if relaxed else [None]
    known = all(dual is not None for dual in duals)
    return Answer(_floats(values), _floats(duals) if known else None)


def _write_back(model: PulpModel, arrays: Arrays) -> None:
    """Bring the PuLP objects up to date with numbers that were changed since they were built."""
    for column, cost, low, high in zip(
        model.columns,
        arrays.cost.tolist(),
        arrays.lower.tolist(),
        arrays.upper.tolist(),
        strict=True,
    ):
        column.lowBound, column.upBound = low, high
        model.problem.objective[column] = cost
    fresh = not model.problem.numConstraints()
    for row, limit in zip(model.rows, arrays.limit.tolist(), strict=True):
        row.constant = -limit
        if fresh:
            model.problem.addConstraint(row)
