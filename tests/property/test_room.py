"""A room is what is free: whatever was taken, given or undone, and whatever it is asked."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from support.clusters import make_job
from support.rooms import gang, random_cluster, random_shape, room_of

from scheduler.allocation.gangs import Gang, gang_of
from scheduler.allocation.gpu_choice import placement_of
from scheduler.allocation.room import Loads, Room
from scheduler.allocation.worth import Worth
from scheduler.model.columns import Columns, Free, rack_label
from scheduler.model.counting import UNBOUNDED
from scheduler.model.job import Topology, Worker
from scheduler.model.node import Node
from scheduler.model.plan import TaskPlacement
from scheduler.model.ports import OrderedJob
from scheduler.model.quantity import WHOLE_GPU_MILLI
from scheduler.model.snapshot import LiveAttempt, Snapshot

many = settings(max_examples=150, deadline=None, derandomize=True)
seeds = st.integers(0, 1_000_000)


def same(a: Free, b: Free) -> bool:
    return all(
        np.array_equal(getattr(a, name), getattr(b, name))
        for name in ("gpu", "milli", "whole", "cpu", "memory")
    )


def tasks_of(room: Room, snapshot: Snapshot, what: Gang, loads: Loads) -> tuple[TaskPlacement, ...]:
    return placement_of(room.table, what, loads, Worth(snapshot), "test").tasks


def holds(worker: Worker, node: Node, free: Free) -> int:
    """How many workers the node holds, counted in plain Python."""
    row = free.table.row_of[node.id]
    if not node.schedulable or (worker.pool is not None and node.pool != worker.pool):
        return 0
    counts = [UNBOUNDED]
    if worker.needs.cpu_milli:
        counts.append(int(free.cpu[row]) // worker.needs.cpu_milli)
    if worker.needs.memory_mib:
        counts.append(int(free.memory[row]) // worker.needs.memory_mib)
    groups: Counter[object] = Counter()
    for gpu in node.gpus:
        if worker.gpu_models and gpu.model not in worker.gpu_models:
            continue
        room = int(free.gpu[row, gpu.index])
        domain = int(free.table.gpu_domain[row, gpu.index]) if worker.one_domain else None
        if worker.gpu_milli:
            groups[domain] += room // worker.gpu_milli
        else:
            groups[domain, gpu.model] += room // WHOLE_GPU_MILLI
    if worker.gpu_milli:
        counts.append(sum(have // worker.parts for have in groups.values()))
    elif worker.needs.gpus:
        counts.append(sum(have // worker.needs.gpus for have in groups.values()))
    return min(counts)


def check_loads(what: Gang, loads: Loads, snapshot: Snapshot, room: Room, before: Free) -> None:
    """The loads are a legal place for the gang in what was free `before`."""
    shape = what.shape
    nodes = [room.table.nodes[load.row] for load in loads]
    assert len({load.row for load in loads}) == len(loads)
    if shape.topology.one_node:
        assert len(loads) == 1
    if shape.topology is Topology.SAME_RACK:
        assert len({rack_label(node) for node in nodes}) == 1
    drawn: Counter[tuple[int, int]] = Counter()
    for load, node in zip(loads, nodes, strict=True):
        assert 0 < load.workers <= holds(what.worker, node, before)
        by_index = {gpu.index: gpu for gpu in node.gpus}
        for index in load.gpus:
            drawn[load.row, index] += shape.gpu_milli or WHOLE_GPU_MILLI
            assert not shape.gpu_models or by_index[index].model in shape.gpu_models
        if what.worker.one_domain:
            assert len({int(room.table.gpu_domain[load.row, gpu]) for gpu in load.gpus}) <= 1
    assert all(milli <= before.gpu[where] for where, milli in drawn.items())
    for task in tasks_of(room, snapshot, what, loads):
        models = {gpu.model for gpu in snapshot.nodes[task.node_id].gpus if gpu.id in task.gpu_ids}
        assert len(models) <= 1
        assert len(task.gpu_ids) == (1 if shape.gpu_milli else shape.per_task.gpus)


@many
@given(seeds)
def test_the_column_of_a_kind_says_how_many_workers_each_node_holds(seed: int) -> None:
    snapshot = random_cluster(seed)
    rng = random.Random(seed)
    room = room_of(snapshot)
    workers = [random_shape(rng).worker for _ in range(4)]
    for _ in range(6):
        for worker in workers:
            expected = [holds(worker, node, room.free) for node in room.table.nodes]
            assert room.fits(worker).tolist() == expected
            assert np.isfinite(room.scores(worker)).tolist() == [have > 0 for have in expected]
        room.place(gang(random_shape(rng)))


@many
@given(seeds)
def test_a_gang_is_placed_legally_exactly_when_it_fits(seed: int) -> None:
    snapshot = random_cluster(seed)
    rng = random.Random(seed)
    room = room_of(snapshot)
    for number in range(10):
        what = gang(random_shape(rng), f"{number}")
        before = room.free.copy()
        counts = {node: holds(what.worker, node, before) for node in room.table.nodes}
        if what.one_rack:
            racks: Counter[str] = Counter()
            for node, count in counts.items():
                racks[rack_label(node)] += count
            possible = max(racks.values()) >= what.workers
        else:
            possible = sum(counts.values()) >= what.workers
        loads = room.place(what)
        assert (loads is not None) == possible
        if loads is None:
            assert same(room.free, before)
            continue
        assert sum(load.workers for load in loads) == what.workers
        if max(counts.values()) >= what.workers and not len(what.shape.gpu_models) > 1:
            assert len(loads) == 1, "one node holds it all"
        check_loads(what, loads, snapshot, room, before)


@many
@given(seeds)
def test_what_is_free_is_as_if_counted_anew(seed: int) -> None:
    snapshot = random_cluster(seed)
    rng = random.Random(seed)
    room = room_of(snapshot)
    running: dict[str, LiveAttempt] = {str(key): each for key, each in snapshot.live.items()}
    gone: dict[str, LiveAttempt] = {}
    placed: list[tuple[Gang, Loads]] = []
    for number in range(15):
        mark, before = room.mark(), room.free.copy()
        step = rng.choice(["place", "place", "grow", "give", "release", "hold", "undo"])
        if step in ("place", "undo"):
            what = gang_of(OrderedJob(make_job(f"{number}", random_shape(rng)), 0, 1.0))
            loads = room.place(what)
            if step == "undo":
                room.undo(mark)
                assert same(room.free, before)
            elif loads is not None:
                placed.append((what, loads))
        elif step == "grow" and placed:
            what, loads = placed.pop(rng.randrange(len(placed)))
            more = room.grow(what, loads)
            have = sum(load.workers for load in more)
            assert sum(load.workers for load in loads) <= have <= what.workers_max
            check_loads(what, more, snapshot, room, _given(snapshot, running, placed, room))
            placed.append((what, more))
        elif step == "give" and placed:
            room.give(*placed.pop(rng.randrange(len(placed))))
        elif step == "release" and running:
            key = rng.choice(sorted(running))
            gone[key] = running.pop(key)
            room.release(gone[key])
        elif step == "hold" and gone:
            key = rng.choice(sorted(gone))
            if room.hold(gone[key]):
                running[key] = gone.pop(key)
            else:
                assert same(room.free, before)
        assert same(room.free, _given(snapshot, running, placed, room))


def _given(
    snapshot: Snapshot,
    running: dict[str, LiveAttempt],
    placed: list[tuple[Gang, Loads]],
    room: Room,
) -> Free:
    """What is free of the cluster while these run, counted from the start."""
    tasks = [task for attempt in running.values() for task in attempt.tasks]
    for what, loads in placed:
        tasks += tasks_of(room, snapshot, what, loads)
    return Columns.of(snapshot.nodes.values(), tasks).free


@many
@given(seeds)
def test_equal_rooms_place_equally(seed: int) -> None:
    snapshot = random_cluster(seed)
    one, other = room_of(snapshot), room_of(snapshot)
    for number in range(8):
        what = gang(random_shape(random.Random(seed * 31 + number)), f"{number}")
        assert one.place(what) == other.place(what)
