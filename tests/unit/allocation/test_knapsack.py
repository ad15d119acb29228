from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import pytest
from support.clusters import MIXES, NOW, make_job, make_node, random_instance, shape, snapshot_of

from policies.priority_age import PriorityAge
from scheduler.allocation import highs, knapsack
from scheduler.allocation.feasibility import Problem, problem_of
from scheduler.allocation.bins import best_greedy, worth
from scheduler.allocation.highs import Answer, Limits, PulpModel
from scheduler.model.job import JobShape, Topology
from scheduler.model.node import Node
from scheduler.model.snapshot import Snapshot

EXACT = Limits(nodes_max=10_000, gap=0.0, seed=0)


def problem(snapshot: Snapshot) -> Problem:
    return problem_of(snapshot, PriorityAge().order(tuple(snapshot.waiting.values()), NOW))


def tiny(nodes: Sequence[Node], shapes: Sequence[JobShape]) -> Problem:
    jobs = [make_job(f"{n}", what, priority=10 * n) for n, what in enumerate(shapes)]
    return problem(snapshot_of(nodes, jobs))


def brute_force(found: Problem) -> float:
    """The best value over all sets of gangs, by depth-first search over nodes for each set."""
    best = 0.0
    for size in range(len(found.gangs) + 1):
        for chosen in combinations(range(len(found.gangs)), size):
            value = sum(found.gangs[gang].value for gang in chosen)
            if value > best and _fits(found, list(chosen), found.capacity.copy()):
                best = value
    return best


def _fits(found: Problem, chosen: list[int], left: Any) -> bool:
    if not chosen:
        return True
    for option in found.gangs[chosen[0]].options:
        family = found.families[option.family]
        if _spread(found, chosen[1:], family, option.workers, 0, left):
            return True
    return False


def _spread(
    found: Problem, rest: list[int], family: Any, workers: int, spot: int, left: Any
) -> bool:
    if workers == 0:
        return _fits(found, rest, left)
    if spot == len(family.spots):
        return False
    for here in range(workers, -1, -1):
        after = left.copy()
        after[family.bins[spot]] -= family.needs * here
        if after.min() >= 0 and _spread(found, rest, family, workers - here, spot + 1, after):
            return True
    return False


TINY = {
    "greedy's trap": (
        [make_node("a", gpus=4)],
        [shape(3), shape(2), shape(2)],
    ),
    "gangs across nodes": (
        [make_node("a", gpus=4), make_node("b", gpus=3)],
        [shape(2, tasks=3), shape(3), shape(1, tasks=4), shape(4)],
    ),
    "cpu binds": (
        [make_node("a", gpus=4, cpu_milli=8_000), make_node("b", gpus=2, cpu_milli=9_000)],
        [shape(1, cpu_milli=5_000), shape(2, cpu_milli=4_000), shape(0, cpu_milli=8_000), shape(2)],
    ),
    "racks": (
        [
            make_node("a", gpus=2, rack="r"),
            make_node("b", gpus=2, rack="r"),
            make_node("c", gpus=2, rack="s"),
        ],
        [
            shape(2, tasks=2, topology=Topology.SAME_RACK),
            shape(1, tasks=2, topology=Topology.SAME_RACK),
            shape(1, tasks=2, topology=Topology.SAME_NODE),
            shape(1, tasks=3),
        ],
    ),
}


@pytest.mark.parametrize("case", TINY)
def test_optimum_equals_brute_force(case: str) -> None:
    found = tiny(*TINY[case])
    solved = knapsack.optimise(knapsack.build(found), best_greedy(found), EXACT)
    best = brute_force(found)
    assert solved.packing is not None
    assert worth(found, solved.packing) == pytest.approx(best)
    assert solved.bound == pytest.approx(best)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("mix", MIXES)
def test_bounds_hold_and_the_optimum_is_never_below_greedy(seed: int, mix: str) -> None:
    found = problem(random_instance(seed, mix))
    model = knapsack.build(found)
    assert len(model.pulp.columns) == found.columns
    relaxed = knapsack.relax(model, EXACT)
    greedy = best_greedy(found)
    solved = knapsack.optimise(model, greedy, Limits(2_000, 1e-6, 0))
    assert solved.packing is not None
    value = worth(found, solved.packing)
    assert worth(found, greedy) <= value * (1 + 1e-9)
    assert value <= solved.bound * (1 + 1e-6)
    assert value <= relaxed.bound * (1 + 1e-6)


def test_the_lp_bound_needs_no_honest_prices() -> None:
    found = tiny(*TINY["greedy's trap"])
    model = knapsack.build(found)
    best = brute_force(found)
    for prices in ([0.0] * 99, [1e6] * 99, [-5.0] * 99, [0.37, -2.0, 11.0] * 33):
        assert knapsack.weak_dual_bound(model, prices[: len(model.pulp.rows)]) >= best
    assert knapsack.weak_dual_bound(model, None) == sum(gang.value for gang in found.gangs)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda values: [value + 0.4 for value in values], "away from an integer"),
        (lambda values: [value * 2 for value in values], "overflows"),
        (lambda values: [*values[:-1], values[-1] + 1], "without a gang|overflows"),
        (lambda values: [1.0] * len(values), "lacks|overflows|without"),
        (lambda values: [-value for value in values], "workers on spot"),
    ],
)
def test_a_wrong_answer_is_refused_with_a_note(
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Sequence[float]], list[float]],
    said: str,
) -> None:
    found = tiny(*TINY["gangs across nodes"])
    model = knapsack.build(found)
    honest = highs.solve(model.pulp, EXACT)
    assert honest.values is not None
    lie = Answer(spoil(honest.values), bound=honest.bound)
    monkeypatch.setattr(knapsack, "solve", lambda *_args, **_options: lie)
    solved = knapsack.optimise(model, {}, EXACT)
    assert solved.packing is None
    assert len(solved.notes) == 1
    assert any(word in solved.notes[0] for word in said.split("|"))


def test_cbc_answers_when_highs_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(highs, "highspy", None)
    found = tiny(*TINY["racks"])
    model = knapsack.build(found)
    solved = knapsack.optimise(model, best_greedy(found), EXACT)
    assert solved.packing is not None
    assert worth(found, solved.packing) == pytest.approx(brute_force(found))
    assert not solved.proved
    assert "HiGHS failed: ImportError" in solved.notes[0]
    relaxed = knapsack.relax(model, EXACT)
    assert brute_force(found) <= relaxed.bound * (1 + 1e-9)
    assert relaxed.bound < sum(gang.value for gang in found.gangs)


def test_no_solver_at_all_is_a_note_not_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object, **_options: object) -> Answer:
        raise RuntimeError("out of licences")

    monkeypatch.setattr(highs, "_highs", fail)
    monkeypatch.setattr(highs, "_cbc", lambda *_args, **_options: Answer(None))
    model = knapsack.build(tiny(*TINY["cpu binds"]))
    solved = knapsack.optimise(model, {}, EXACT)
    assert (solved.packing, solved.bound) == (None, float("inf"))
    assert solved.notes == (
        "HiGHS failed: RuntimeError: out of licences",
        "CBC found no solution within its limits",
    )


def test_an_empty_problem_solves() -> None:
    found = problem(snapshot_of([], []))
    assert knapsack.relax(knapsack.build(found), EXACT).bound == 0.0
    assert isinstance(knapsack.build(found).pulp, PulpModel)
