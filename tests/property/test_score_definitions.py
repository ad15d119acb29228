"""Scores that come from tables equal what their definitions say, worked out shape by shape."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.clusters import make_node

from policies.balance import Balance, fillable
from policies.best_fit import BestFit
from policies.fgd import Fgd
from policies.fragmentation import Fragmentation
from policies.lowest_index import LowestIndex
from policies.node_states import NodeStates
from policies.placement_score import PlacementScore
from policies.random_fit import RandomFit
from policies.typical_mix import Access, Footprint, TypicalMix
from scheduler.model.columns import Columns, Free
from scheduler.model.job import JobShape, Worker
from scheduler.model.ports import NodeScore
from scheduler.model.quantity import PoolName, Resources
from scheduler.model.snapshot import Snapshot

GPUS = 4
CASES = settings(max_examples=50, deadline=None)
"""No deadline: a busy machine is not a wrong score."""
MODELS = ("A", "B")
POOLS = ("p", "q")

parts = st.sampled_from((50, 160, 320, 470, 650, 810))
amounts = st.sampled_from((0, 1_000, 4_000, 9_000, 33_000))


@dataclass(frozen=True)
class State:
    """One node as the definitions see it."""

    model: str
    pool: str
    cpu: int
    memory: int
    gpu: tuple[int, ...]


@st.composite
def shapes(draw: st.DrawFn) -> JobShape:
    needs = Resources(draw(st.sampled_from((0, 0, 1, 1, 2, 4))), draw(amounts), draw(amounts))
    part = 0 if needs.gpus else draw(st.one_of(st.just(0), parts))
    models = draw(st.sampled_from(((), (), ("A",), ("B", "A")))) if needs.gpus or part else ()
    pool = draw(st.sampled_from((None, None, "q")))
    return JobShape(
        draw(st.integers(1, 3)),
        needs,
        models,
        pool=None if pool is None else PoolName(pool),
        gpu_milli=part,
    )


mixes = st.dictionaries(shapes(), st.integers(1, 9), min_size=1, max_size=6)
states = st.builds(
    State,
    st.sampled_from(MODELS),
    st.sampled_from(POOLS),
    amounts,
    amounts,
    st.lists(
        st.one_of(st.just(1_000), st.just(0), st.integers(0, 1_000)), min_size=1, max_size=GPUS
    ).map(tuple),
)


def free_of(nodes: list[State]) -> Free:
    """What is free, without the bother of attempts that hold the rest."""
    table = Columns.of(
        (
            make_node(f"{row:02}", gpus=len(node.gpu), model=node.model, pool=node.pool)
            for row, node in enumerate(nodes)
        ),
        (),
    ).free.copy()
    table.gpu[:] = 0
    for row, node in enumerate(nodes):
        table.gpu[row, : len(node.gpu)] = node.gpu
        table.cpu[row], table.memory[row] = node.cpu, node.memory
    table.milli[:] = table.gpu.sum(axis=1)
    return table


def admitted(what: Footprint, node: State) -> bool:
    return (not what.gpu_models or node.model in what.gpu_models) and what.pool in ("", node.pool)


def holds(what: Footprint, node: State) -> bool:
    able = sum(1 for free in node.gpu if free >= what.gpu_milli)
    return admitted(what, node) and what.cpu_milli <= node.cpu and able >= what.gpus


def fragmentation(mix: TypicalMix, node: State) -> float:
    """F(n) as section 3 of the paper words it."""
    lost = 0.0
    for what, share in zip(mix.footprints, mix.share.tolist(), strict=True):
        if what.gpus and holds(what, node):
            lost += share * sum(free for free in node.gpu if free < what.gpu_milli)
        else:
            lost += share * sum(node.gpu)
    return lost


def fed(mix: TypicalMix, worth: list[float], node: State) -> float:
    free = sum(worth[gpu] for gpu in node.gpu)
    total = 0.0
    for what, share in zip(mix.footprints, mix.share.tolist(), strict=True):
        if not admitted(what, node):
            continue
        value = what.gpus * worth[what.gpu_milli]
        by_cpu = value * node.cpu / what.cpu_milli if what.cpu_milli else math.inf
        by_memory = value * node.memory / what.memory_mib if what.memory_mib else math.inf
        total += share * (min(free, by_cpu) + min(free, by_memory)) / 2
    return total


def after(worker: Worker, node: State) -> list[State]:
    """The states after a worker that fits, one for each way to choose GPUs that differ."""
    cpu, memory = node.cpu - worker.needs.cpu_milli, node.memory - worker.needs.memory_mib
    if worker.gpu_milli:
        return [
            State(
                node.model,
                node.pool,
                cpu,
                memory,
                (*node.gpu[:at], free - worker.gpu_milli, *node.gpu[at + 1 :]),
            )
            for at, free in enumerate(node.gpu)
            if free >= worker.gpu_milli
        ]
    gpu, missing = list(node.gpu), worker.needs.gpus
    for at, free in enumerate(gpu):
        if missing and free == 1_000:
            gpu[at], missing = 0, missing - 1
    return [] if missing else [State(node.model, node.pool, cpu, memory, tuple(gpu))]


def fits(worker: Worker, node: State) -> bool:
    enough = worker.needs.cpu_milli <= node.cpu and worker.needs.memory_mib <= node.memory
    return enough and bool(after(worker, node))


@CASES
@given(mixes, st.lists(states, min_size=1, max_size=5))
def test_fragmentation_is_the_papers(mix: Mapping[JobShape, int], nodes: list[State]) -> None:
    free, typical = free_of(nodes), TypicalMix.of(mix)
    table = Fragmentation(typical, Access.of(free.table, typical), free.gpu.shape[1])
    found = table.of(NodeStates.now(free, np.arange(len(nodes))))
    expected = [fragmentation(typical, node) for node in nodes]
    assert found.tolist() == pytest.approx(expected)
    assert all(
        -1e-9 <= lost <= sum(node.gpu) + 1e-9
        for lost, node in zip(found.tolist(), nodes, strict=True)
    )


@CASES
@given(mixes, states, amounts)
def test_more_cpu_never_means_more_fragmentation(
    mix: Mapping[JobShape, int], node: State, more: int
) -> None:
    richer = State(node.model, node.pool, node.cpu + more, node.memory, node.gpu)
    free, typical = free_of([node, richer]), TypicalMix.of(mix)
    table = Fragmentation(typical, Access.of(free.table, typical), free.gpu.shape[1])
    poor, rich = table.of(NodeStates.now(free, np.arange(2))).tolist()
    assert rich <= poor + 1e-9


@CASES
@given(mixes, st.lists(states, min_size=1, max_size=5))
def test_balance_is_what_cpu_and_memory_can_feed(
    mix: Mapping[JobShape, int], nodes: list[State]
) -> None:
    free, typical = free_of(nodes), TypicalMix.of(mix)
    typical = typical.only(typical.gpus > 0)
    balance = Balance(typical, Access.of(free.table, typical))
    found = balance.of(NodeStates.now(free, np.arange(len(nodes))))
    worth = balance.worth.tolist()
    assert found.tolist() == pytest.approx([fed(typical, worth, node) for node in nodes])


@CASES
@given(mixes)
def test_fillable_is_the_best_sum_of_parts(mix: Mapping[JobShape, int]) -> None:
    typical = TypicalMix.of(mix)
    typical = typical.only(typical.gpus > 0)
    worth = fillable(typical).tolist()
    sizes = {int(milli) for milli in typical.gpu_milli if milli < 1_000}
    reached = {0}
    for total in range(1, 1_001):
        if any(total - size in reached for size in sizes):
            reached.add(total)
    assert worth[0] == 0
    assert worth[1_000] == 1_000
    assert worth == sorted(worth)
    # Rare sizes may be left out of the sums, so nothing is worth more than with all of them.
    assert all(
        value <= max(total for total in reached if total <= free)
        for free, value in enumerate(worth[:1_000])
    )


@CASES
@given(mixes, st.lists(states, min_size=1, max_size=5), shapes())
def test_fgd_is_the_published_score(
    mix: Mapping[JobShape, int], nodes: list[State], what: JobShape
) -> None:
    worker = what.worker
    rows = [row for row, node in enumerate(nodes) if fits(worker, node)]
    if not rows:
        return
    free = free_of(nodes)
    snapshot = Snapshot()
    snapshot.__dict__["mix"] = mix
    typical = TypicalMix.of(mix, cover=0.95, by_memory=False)
    found = Fgd().on(free, snapshot, 1).rows(worker, np.array(rows))
    for row, score in zip(rows, found.tolist(), strict=True):
        before = fragmentation(typical, nodes[row])
        falls = [before - fragmentation(typical, each) for each in after(worker, nodes[row])]
        exact = max(100 / (1 + math.exp(-fall / 1_000)) for fall in falls)
        # The integer part; rounding of the sums may matter where the exact score is an integer.
        assert 100 - score in {math.floor(exact - 1e-9), math.floor(exact + 1e-9)}


@CASES
@given(mixes, st.lists(states, min_size=1, max_size=5), shapes())
def test_placement_score_is_the_fall_of_its_terms(
    mix: Mapping[JobShape, int], nodes: list[State], what: JobShape
) -> None:
    worker = what.worker
    rows = [row for row, node in enumerate(nodes) if fits(worker, node)]
    if not rows:
        return
    free = free_of(nodes)
    snapshot = Snapshot()
    snapshot.__dict__["mix"] = mix
    typical = TypicalMix.of(mix)
    typical = typical.only(typical.gpus > 0)
    typical = typical.weighted((typical.gpu_milli / 1_000) ** -0.5)
    weights = snapshot.terms.weights
    worth = fillable(typical).tolist()

    def badness(node: State) -> float:
        return (
            weights.fragmentation * fragmentation(typical, node)
            - weights.balance * fed(typical, worth, node)
        ) / 1_000

    scoring = PlacementScore().on(free, snapshot, 1)
    found = scoring.rows(worker, np.array(rows)).tolist()
    for row, score in zip(rows, found, strict=True):
        node = nodes[row]
        lost = min(badness(each) for each in after(worker, node)) - badness(node)
        idle = sum(node.gpu) / (1_000 * free.gpu.shape[1])
        assert score == pytest.approx(
            lost
            + (weights.tightness - weights.spread) * idle
            + weights.topology * (worker.needs.gpus > 1),  # no links: no two GPUs share a domain
            abs=1e-9,
        )


SCORES = (
    BestFit(),
    Fgd(),
    Fgd(random_ties=True),
    RandomFit(),
    LowestIndex(),
    PlacementScore(),
)


@pytest.mark.parametrize("score", SCORES, ids=lambda score: score.name)
@CASES
@given(mixes, st.lists(states, min_size=1, max_size=5), shapes())
def test_every_score_is_finite_repeatable_and_names_a_gpu_with_room(
    score: NodeScore, mix: Mapping[JobShape, int], nodes: list[State], what: JobShape
) -> None:
    worker = what.worker
    rows = [row for row, node in enumerate(nodes) if fits(worker, node)]
    if not rows:
        return
    free = free_of(nodes)
    snapshot = Snapshot()
    snapshot.__dict__["mix"] = mix
    scores = [score.on(free, snapshot, 7).rows(worker, np.array(rows)) for _ in range(2)]
    assert np.isfinite(scores[0]).all()
    assert scores[0].tolist() == scores[1].tolist()
    if worker.gpu_milli:
        for row in rows:
            gpu = score.on(free, snapshot, 7).gpu(worker, row)
            assert free.gpu[row, gpu] >= worker.gpu_milli


@CASES
@given(mixes, st.lists(states, min_size=2, max_size=5), shapes())
def test_a_row_scores_the_same_alone_and_among_others(
    mix: Mapping[JobShape, int], nodes: list[State], what: JobShape
) -> None:
    """A room asks again only for rows that changed, and must get what a full question would."""
    worker = what.worker
    rows = [row for row, node in enumerate(nodes) if fits(worker, node)]
    free = free_of(nodes)
    snapshot = Snapshot()
    snapshot.__dict__["mix"] = mix
    for score in (Fgd(), PlacementScore()):
        scoring = score.on(free, snapshot, 1)
        together = scoring.rows(worker, np.array(rows, dtype=np.int64)).tolist() if rows else []
        alone = [float(scoring.rows(worker, np.array([row]))[0]) for row in rows]
        assert together == pytest.approx(alone)
