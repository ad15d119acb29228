"""What solvers do wrong, and that it costs a note at most."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pulp
import pytest
from support.clusters import NOW
from support.solver_instances import solver_instance

from policies.best_fit import BestFit
from policies.priority_age import PriorityAge
from scheduler.allocation import highs
from scheduler.allocation.exact import whole_point
from scheduler.allocation.figures import figures_of
from scheduler.allocation.gangs import gangs_of
from scheduler.allocation.highs import Answer, Limits, Program, PulpModel, arrays_of
from scheduler.allocation.knapsack import Knapsack, build, relax
from scheduler.allocation.optimise import Candidate, Task, greedy, improve
from scheduler.allocation.outline import Scene, outline_of
from scheduler.allocation.room import Room
from scheduler.allocation.worth import Worth
from scheduler.model.columns import Floats
from scheduler.model.ports import Effort

LIMITS = Limits(2_000, 1e-6, 0)


def program() -> Program:
    """Three of value 5, 4, 3 that weigh 2, 3, 1; four units of room, at most two of them."""
    problem = pulp.LpProblem("tiny", pulp.LpMaximize)
    columns = [problem.add_variable(name, 0, 1, pulp.LpInteger) for name in "abc"]
    problem.setObjective(pulp.LpAffineExpression(list(zip(columns, (5.0, 4.0, 3.0), strict=True))))
    weights = zip(columns, (2.0, 3.0, 1.0), strict=True)
    rows = [
        pulp.LpConstraint(pulp.LpAffineExpression(list(weights)), pulp.LpConstraintLE, "room", 4.0),
        pulp.LpConstraint(
            pulp.LpAffineExpression([(column, 1.0) for column in columns]),
            pulp.LpConstraintLE,
            "two",
            2.0,
        ),
    ]
    return Program(PulpModel(problem, columns, rows))


def task() -> Task:
    snapshot = solver_instance(0, "gang", 16, gangs=40)
    gangs = gangs_of(PriorityAge().order(tuple(snapshot.waiting.values()), NOW))
    return Task(snapshot, gangs, lambda: Room(snapshot, BestFit(), 0), Worth(snapshot))


def knapsack() -> Knapsack:
    found = task()
    scene = Scene.of(found.snapshot, found.gangs)
    outline = outline_of(scene, each_node=True)
    return build(outline, figures_of(outline, scene))


def candidates() -> list[Candidate]:
    found = task()
    return list(improve(found, greedy(found), Effort(), 0))


def test_arrays_are_the_model() -> None:
    arrays = program().arrays
    assert arrays.cost.tolist() == [5, 4, 3]
    assert arrays.limit.tolist() == [4, 2]
    assert arrays.activity(np.array([1.0, 0.0, 1.0])).tolist() == [3, 2]
    assert arrays.priced(np.array([1.0, 0.5])).tolist() == [2.5, 0.5, 1.5]


def test_a_live_program_solves_again_with_other_numbers_as_a_fresh_one_does() -> None:
    live = program()
    first = live.relax(LIMITS)
    assert first.values is not None
    assert live.arrays.cost @ first.values == pytest.approx(8.5)
    cost, limit = np.array([1.0, 6.0, 3.0]), np.array([3.5, 2.0])
    live.change(cost, live.arrays.lower, np.array([1.0, 1.0, 0.5]), limit)
    again = live.relax(LIMITS)
    assert again.values is not None
    assert live.arrays.cost @ again.values == pytest.approx(7.5)
    integer = live.solve(LIMITS)
    assert integer.values is not None
    assert live.arrays.cost @ integer.values == pytest.approx(6)
    assert integer.bound == pytest.approx(6)


def test_cbc_answers_when_highs_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(highs, "highspy", None)
    model = program()
    model.change(model.arrays.cost, model.arrays.lower, model.arrays.upper, np.array([3.0, 2.0]))
    relaxed = model.relax(LIMITS)
    assert relaxed.notes == ("HiGHS failed: ImportError: highspy is not installed",)
    assert relaxed.values is not None
    assert model.arrays.cost @ relaxed.values == pytest.approx(8)
    integer = model.solve(LIMITS, np.array([1.0, 0.0, 1.0]))
    assert integer.values is not None
    assert integer.values.tolist() == [1, 0, 1]
    assert integer.bound is None, "CBC proves nothing that can be believed"


def test_the_bound_holds_with_cbc_too(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = candidates()[-1]
    monkeypatch.setattr(highs, "highspy", None)
    model = knapsack()
    assert relax(model, LIMITS).bound >= honest.value * (1 - 1e-9)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(None), "found no solution within its limits"),
        (Answer(np.array([1.0])), "gave 1 values for 3 columns"),
        (Answer(np.array([1.0, np.nan, 0.0])), "gave values that are no numbers"),
        (Answer(np.array([1.0, np.inf, 0.0])), "gave values that are no numbers"),
    ],
)
def test_an_answer_without_a_point_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, answer: Answer, said: str
) -> None:
    monkeypatch.setattr(highs, "_highs_mip", lambda *_args: answer)
    found = program().solve(LIMITS)
    assert found.notes == (f"HiGHS {said}",)
    assert found.values is not None
    assert found.values.tolist() == [1, 0, 1], "CBC's answer"


def test_a_solver_that_raises_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object, **_options: object) -> Answer:
        raise KeyError("HighsModelStatus.kSolutionLimit")

    monkeypatch.setattr(highs, "_highs_mip", fail)
    monkeypatch.setattr(highs, "_cbc", fail)
    found = program().solve(LIMITS)
    assert found.values is None
    assert [note.split(":")[0] for note in found.notes] == ["HiGHS failed", "CBC failed"]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda values: values + 0.4, "away from an integer"),
        (lambda values: values * 3 + 1, "breaks a row"),
        (lambda values: -values - 1, "breaks a row"),
        (lambda values: np.full_like(values, 1.0), "breaks a row"),
    ],
)
def test_a_wrong_point_is_refused(spoil: Callable[[Floats], Floats], said: str) -> None:
    model = knapsack()
    honest = model.program.solve(LIMITS)
    assert honest.values is not None
    assert whole_point(model, honest)[0] is not None
    point, why = whole_point(model, Answer(spoil(honest.values)))
    assert point is None
    assert said in why


LIES: Mapping[str, Callable[[Floats], Floats]] = {
    "the trivial point, called optimal": np.zeros_like,
    "fractions left over": lambda values: values * 0.37,
    "more than there is": lambda values: values + 1.0,
}


@pytest.mark.parametrize("lie", LIES)
def test_whatever_a_solver_says_nothing_is_below_greedy(
    monkeypatch: pytest.MonkeyPatch, lie: str
) -> None:
    honest = candidates()
    relaxed, solve = Program.relax, Program.solve

    def lying_relax(self: Program, limits: Limits) -> Answer:
        answer = relaxed(self, limits)
        assert answer.values is not None
        return Answer(LIES[lie](answer.values), np.full(self.arrays.limit.size, -7.0))

    def lying_solve(self: Program, limits: Limits, start: Floats | None = None) -> Answer:
        answer = solve(self, limits, start)
        assert answer.values is not None
        return Answer(LIES[lie](answer.values), bound=0.0)

    monkeypatch.setattr(Program, "relax", lying_relax)
    monkeypatch.setattr(Program, "solve", lying_solve)
    found = task()
    incumbent = greedy(found)
    value = found.worth.total(found.gangs, incumbent)
    told = candidates()
    assert all(candidate.value >= value for candidate in told)
    assert told[-1].bound >= honest[-1].value
    assert any("claimed bound 0" in note for note in told[-1].notes)


def test_equal_models_give_equal_answers_to_the_bit() -> None:
    first, second = (knapsack().program.solve(Limits(50, 1e-6, 3)) for _ in range(2))
    assert first.values is not None
    assert second.values is not None
    assert first.values.tolist() == second.values.tolist()
    assert (first.bound, first.nodes) == (second.bound, second.nodes)


def test_reading_a_model_twice_reads_the_same() -> None:
    model = program()
    again = arrays_of(model.model)
    assert again.value.tolist() == model.arrays.value.tolist()
    assert again.index.tolist() == model.arrays.index.tolist()
