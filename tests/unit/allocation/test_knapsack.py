"""The model and what surrounds it: classes of jobs and nodes, figures, points, dives, rounding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from support.clusters import MIXES, NOW, make_job, make_node, random_instance, shape, snapshot_of
from support.solver_instances import FAMILIES, solver_instance

from policies.best_fit import BestFit
from policies.priority_age import PriorityAge
from scheduler.allocation.dive import dive
from scheduler.allocation.exact import point_of
from scheduler.allocation.figures import figures_of, trimmed
from scheduler.allocation.follow import Goal, RoomPacker, follow, goal_of
from scheduler.allocation.gangs import Gang, gangs_of
from scheduler.allocation.greedy import best_greedy
from scheduler.allocation.groups import Dimensions, Fits, Places
from scheduler.allocation.highs import Limits
from scheduler.allocation.knapsack import build, holds, refresh, relax, weak_dual_bound
from scheduler.allocation.outline import Scene, outline_of
from scheduler.allocation.room import Room
from scheduler.allocation.worth import Worth
from scheduler.model.job import JobShape, Topology, WaitingJob
from scheduler.model.ports import OrderedJob
from scheduler.model.quantity import Resources
from scheduler.model.snapshot import Snapshot

LIMITS = Limits(2_000, 1e-6, 0)


def gangs(snapshot: Snapshot) -> tuple[Gang, ...]:
    return gangs_of(PriorityAge().order(tuple(snapshot.waiting.values()), NOW))


def valued(jobs: Sequence[WaitingJob], values: Sequence[float]) -> tuple[Gang, ...]:
    entries = zip(jobs, values, strict=True)
    return gangs_of([OrderedJob(job, rank, value) for rank, (job, value) in enumerate(entries)])


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("seed", range(3))
def test_counted_fits_are_those_of_a_room(seed: int, mix: str) -> None:
    snapshot = random_instance(seed, mix)
    table = snapshot.columns.table
    room = Room(snapshot, BestFit(), 0)
    places = Places.of(snapshot.columns.free, np.arange(len(table.nodes)))
    counted = Fits(table, places)
    for worker in {gang.worker for gang in gangs(snapshot)}:
        assert counted.of(worker).tolist() == room.fits(worker).tolist(), worker


def test_dimensions_count_what_workers_draw_wherever_they_sit() -> None:
    kinds = [shape(gpus, cpu_milli=1_000 * gpus).worker for gpus in (1, 2, 8)]
    half = JobShape(1, Resources(0, 1_000, 1_000), gpu_milli=500).worker
    dims = Dimensions.of([*kinds, half], blocks=[4])
    assert (dims.slots, dims.shares, dims.reserve) == ((1, 2, 8), (1, 500), (1, 2, 4))
    assert dims.drawn(kinds[2])[:5] == [8, 4, 1, 8_000, 16]
    assert dims.drawn(half)[3:5] == [500, 1]
    snapshot = snapshot_of([make_node("a", gpus=7, cpu_milli=3_000)], [])
    held = dims.held(Places.of(snapshot.columns.free, np.array([0])))[0]
    # Three cores go with three GPUs at a core each: the other four are no slots.
    assert held[:5].tolist() == [3, 1, 0, 7_000, 14]
    assert held[dims.rows :].tolist() == [7, 3, 1]


def test_buckets_hold_what_could_start_at_once_the_most_valuable_first() -> None:
    jobs = [make_job(f"{n}", shape(4)) for n in range(5)]
    snapshot = snapshot_of([make_node("a"), make_node("b", gpus=2)], jobs)
    scene = Scene.of(snapshot, valued(jobs, [3.0, 9.0, 1.0, 9.0, 4.0]))
    assert [bucket.gangs for bucket in scene.buckets] == [(1, 3)]
    outline = outline_of(scene)
    assert figures_of(outline, scene).members == ((1, 3),), "equal values share a column"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_refreshed_model_says_what_a_fresh_one_says(family: str) -> None:
    snapshot = solver_instance(1, family, 32)
    scene = Scene.of(snapshot, gangs(snapshot))
    outline = outline_of(scene)
    knapsack = build(outline, figures_of(outline, scene))
    relax(knapsack, LIMITS)
    fewer = dict(list(snapshot.waiting.items())[10:])
    live = dict(list(snapshot.live.items())[5:])
    later = replace(snapshot, waiting=fewer, live=live)
    now = Scene.of(later, gangs(later))
    fresh = outline_of(now)
    known = outline.covers(fresh)
    if not known:  # with fewer running more fits: buckets may have outgrown their columns
        return
    refresh(knapsack, figures_of(outline, now))
    again = build(fresh, figures_of(fresh, now))
    assert relax(knapsack, LIMITS).bound == pytest.approx(relax(again, LIMITS).bound, rel=1e-7)


def test_an_outline_does_not_cover_what_it_has_no_columns_for() -> None:
    jobs = [make_job("one", shape(1)), make_job("two", shape(2))]
    nodes = [make_node("a")]
    both, first = snapshot_of(nodes, jobs), snapshot_of(nodes, jobs[:1])
    wide = outline_of(Scene.of(both, gangs(both)))
    narrow = outline_of(Scene.of(first, gangs(first)))
    assert wide.covers(narrow)
    assert not narrow.covers(wide)
    other = snapshot_of([make_node("a", model="A100", pool="batch")], jobs)
    assert not wide.covers(outline_of(Scene.of(other, gangs(other))))
    more = snapshot_of([*nodes, make_node("b")], jobs)
    assert not wide.covers(outline_of(Scene.of(more, gangs(more))))


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_left_out_change_no_bound(family: str) -> None:
    snapshot = solver_instance(2, family, 150)
    scene = Scene.of(snapshot, gangs(snapshot))
    outline = outline_of(scene)
    figures = figures_of(outline, scene)
    short = trimmed(outline, figures)
    assert not short.binding[0].all()
    whole = relax(build(outline, figures), LIMITS).bound
    assert relax(build(short, figures), LIMITS).bound == pytest.approx(whole, rel=1e-7)


@pytest.mark.parametrize("each_node", [False, True])
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("seed", range(3))
def test_a_packing_is_a_point_of_the_model(seed: int, mix: str, *, each_node: bool) -> None:
    snapshot = random_instance(seed, mix)
    found = gangs(snapshot)
    worth = Worth(snapshot)
    packing = best_greedy(lambda: Room(snapshot, BestFit(), 0), found, worth)
    scene = Scene.of(snapshot, found)
    outline = outline_of(scene, each_node=each_node)
    figures = figures_of(outline, scene)
    knapsack = build(outline, figures)
    point = point_of(knapsack, figures, found, packing)
    if point is None:  # a gang that its bucket's cut left out stands in for one like it
        kept = {gang for members in figures.members for gang in members}
        assert not set(packing) <= kept
        return
    arrays = knapsack.program.arrays
    assert holds(arrays, point)
    assert arrays.cost @ point == pytest.approx(worth.total(found, packing))
    goal = goal_of(outline, figures, point)
    assert sorted(goal.admitted) == sorted(packing) or len(goal.admitted) == len(packing)


def test_a_dive_starts_gangs_wholly_and_leaves_the_program_as_it_was() -> None:
    snapshot = solver_instance(0, "gang", 150)
    scene = Scene.of(snapshot, gangs(snapshot))
    outline = outline_of(scene)
    knapsack = build(outline, figures_of(outline, scene))
    relaxed = relax(knapsack, LIMITS)
    assert relaxed.values is not None
    before = knapsack.program.arrays
    point = dive(knapsack, relaxed, LIMITS, steps_max=40)
    assert point is not None
    start = outline.fields["start"]
    torn = np.abs(point[start] - np.round(point[start])) * before.cost[start]
    assert torn.sum() <= 2e-3 * relaxed.bound
    assert before.cost @ point >= 0.97 * relaxed.bound
    assert holds(before, point)
    assert knapsack.program.arrays.lower is before.lower
    assert relax(knapsack, LIMITS).bound == pytest.approx(relaxed.bound, rel=1e-7)


def test_no_price_makes_the_bound_a_lie() -> None:
    jobs = [make_job("three", shape(3)), make_job("two", shape(2)), make_job("more", shape(2))]
    snapshot = snapshot_of([make_node("a", gpus=4)], jobs)
    scene = Scene.of(snapshot, valued(jobs, [5.0, 4.0, 4.0]))
    outline = outline_of(scene)
    knapsack = build(outline, figures_of(outline, scene))
    rows = knapsack.program.arrays.limit.size
    for price in (0.0, 1e6, -5.0, np.inf, 0.37):
        assert weak_dual_bound(knapsack, np.full(rows, price)) >= 8.0


def test_who_found_no_place_goes_first_in_the_next_round() -> None:
    nodes = [make_node("a", gpus=4, cpu_milli=4_000), make_node("b", gpus=4, cpu_milli=40_000)]
    modest = [make_job(f"m{n}", shape(2, cpu_milli=2_000)) for n in range(2)]
    hungry = [make_job("hungry", shape(1, tasks=4, cpu_milli=10_000))]
    snapshot = snapshot_of(nodes, [*modest, *hungry])
    found = valued([*modest, *hungry], [4.0, 4.0, 9.0])
    goal = Goal((0, 1, 2), (), {}, {gang.worker: {} for gang in found})
    rounds = 0

    def make() -> RoomPacker:
        nonlocal rounds
        rounds += 1
        room = Room(snapshot, BestFit(), 0)
        room.free.cpu[0] += 0
        return RoomPacker(room, np.zeros(2, dtype=np.int64))

    _, placed = follow(make, found, goal, Worth(snapshot))
    assert sorted(placed) == [0, 1, 2]
    assert rounds <= 3


def test_racks_stay_out_of_the_model_where_they_would_be_too_many() -> None:
    nodes = [make_node(f"{n:03}", gpus=1, rack=f"r{n}") for n in range(130)]
    jobs = [
        make_job(f"{n}", shape(1, tasks=2, cpu_milli=n + 1, topology=Topology.SAME_RACK))
        for n in range(100)
    ]
    snapshot = snapshot_of(nodes, jobs)
    scene = Scene.of(snapshot, gangs(snapshot))
    assert scene.buckets[0].gangs == (), "no rack holds two"
    assert outline_of(scene).columns == 0
    pair = [make_node(f"p{n}", gpus=1, rack="pair") for n in range(2)]
    snapshot = snapshot_of([*nodes, *pair], jobs)
    scene = Scene.of(snapshot, gangs(snapshot))
    outline = outline_of(scene)
    assert (outline.racks, len(outline.groups.key)) == (False, 1)
    assert all(len(bucket.gangs) == 1 for bucket in scene.buckets)
