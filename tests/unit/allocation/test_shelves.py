from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from support.clusters import (
    DGX1_V100,
    NOW,
    links,
    make_job,
    make_node,
    occupy,
    shape,
    snapshot_of,
)
from support.solver_instances import FAMILIES, solver_instance

from policies.best_fit import BestFit
from policies.priority_age import PriorityAge
from scheduler.allocation.follow import fill
from scheduler.allocation.gangs import Gang, gangs_of
from scheduler.allocation.greedy import by_density
from scheduler.allocation.groups import groups_of
from scheduler.allocation.room import Loads, Room
from scheduler.allocation.shelves import Shelves, dealt, shelvable
from scheduler.allocation.worth import Worth
from scheduler.model.job import JobShape, WaitingJob
from scheduler.model.ports import OrderedJob
from scheduler.model.quantity import DEFAULT_TENANT, WHOLE_GPU_MILLI, Resources
from scheduler.model.snapshot import Snapshot
from scheduler.model.terms import Headroom, Quota, Terms


def shelves_of(snapshot: Snapshot) -> Shelves:
    groups = groups_of(snapshot.columns.table, snapshot.terms, (), racks=False, each_node=False)
    return Shelves(snapshot, snapshot.columns.free, groups.of_row, groups.price.tolist())


def gang(what: JobShape, name: str = "g") -> Gang:
    (found,) = gangs_of([OrderedJob(make_job(name, what), 0, 1.0)])
    return found


def rows(loads: Loads | None) -> list[tuple[int, int]]:
    assert loads is not None
    return [(load.row, load.workers) for load in loads]


def cluster(*free: int, jobs: Sequence[WaitingJob] = (), terms: Terms | None = None) -> Snapshot:
    """Nodes of eight GPUs with so many free."""
    nodes = [make_node(f"{number}") for number in range(len(free))]
    live = [
        occupy(node, range(8 - count)) for node, count in zip(nodes, free, strict=True) if count < 8
    ]
    return replace(snapshot_of(nodes, jobs, live), terms=terms or Terms())


def test_the_lowest_shelf_that_holds_it_is_taken() -> None:
    shelves = shelves_of(cluster(8, 3, 5))
    assert rows(shelves.place(gang(shape(2)))) == [(1, 1)]
    assert rows(shelves.place(gang(shape(2)))) == [(2, 1)]
    assert rows(shelves.place(gang(shape(1)))) == [(1, 1)]
    assert shelves.place(gang(shape(2, tasks=10))) is None


def test_a_gang_that_does_not_fit_leaves_no_trace() -> None:
    shelves = shelves_of(cluster(4, 4))
    assert shelves.place(gang(shape(3, tasks=3))) is None
    assert rows(shelves.place(gang(shape(4, tasks=2)))) == [(0, 1), (1, 1)]


def test_what_is_given_back_can_be_taken_again() -> None:
    shelves = shelves_of(cluster(4))
    first, second = gang(shape(4)), gang(shape(4), "h")
    loads = shelves.place(first)
    assert loads is not None
    assert shelves.place(second) is None
    shelves.give(first, loads)
    assert rows(shelves.place(second)) == [(0, 1)]


def test_cpu_and_memory_are_counted_on_each_node() -> None:
    nodes = [make_node("a", cpu_milli=4_000), make_node("b", cpu_milli=40_000)]
    shelves = shelves_of(snapshot_of(nodes, []))
    assert rows(shelves.place(gang(shape(1, cpu_milli=5_000)))) == [(1, 1)]
    assert shelves.place(gang(shape(1, tasks=9, cpu_milli=4_000))) is None
    assert rows(shelves.place(gang(shape(1, tasks=8, cpu_milli=4_000)))) == [(1, 7), (0, 1)]
    assert shelves.place(gang(shape(0, cpu_milli=50_000))) is None


def test_quotas_and_hard_headroom_hold() -> None:
    quota = Quota(DEFAULT_TENANT, nominal_milli=20 * WHOLE_GPU_MILLI)
    terms = Terms(quotas=(quota,), headroom=(Headroom(None, 8, 1),))
    shelves = shelves_of(cluster(8, 8, 3, terms=terms))
    held = 5 * WHOLE_GPU_MILLI  # by the third node
    assert rows(shelves.place(gang(shape(8)))) == [(0, 1)]
    assert shelves.place(gang(shape(8))) is None, "the last whole node stays free"
    assert shelves.place(gang(shape(4))) is None, "nor may it be broken up"
    assert rows(shelves.place(gang(shape(3)))) == [(2, 1)]
    assert held + 11 * WHOLE_GPU_MILLI < quota.nominal_milli
    tight = replace(terms, quotas=(replace(quota, nominal_milli=held + 2_000),))
    shelves = shelves_of(cluster(8, 8, 3, terms=tight))
    assert shelves.place(gang(shape(3))) is None
    assert rows(shelves.place(gang(shape(2)))) == [(2, 1)]


def test_only_counts_of_whole_gpus_are_for_shelves() -> None:
    table = cluster(8).columns.table
    assert shelvable(table, shape(2).worker)
    assert not shelvable(table, JobShape(1, Resources(0, 1, 1), gpu_milli=500).worker)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_room_takes_what_shelves_dealt(family: str) -> None:
    snapshot = solver_instance(3, family, 150)
    gangs = gangs_of(PriorityAge().order(tuple(snapshot.waiting.values()), NOW))
    placed: dict[int, Loads] = {}
    order = by_density(gangs, snapshot.columns.free)
    fill(shelves_of(snapshot), gangs, placed, order, Worth(snapshot))
    packing = dealt(snapshot.columns.free.copy(), gangs, placed)
    room = Room(snapshot, BestFit(), 0)
    for index in sorted(packing):
        quota_left = room.quotas.left(gangs[index].job.tenant)
        milli = gangs[index].worker.milli * gangs[index].workers
        assert quota_left is None or milli <= quota_left
        assert room.take(gangs[index], packing[index])
    assert room.reserves_kept


def test_on_a_board_with_links_the_best_linked_gpus_are_dealt() -> None:
    snapshot = snapshot_of([make_node("a", board=links(DGX1_V100))], [])
    pair = gang(shape(2))
    loads = shelves_of(snapshot).place(pair)
    assert loads is not None
    packing = dealt(snapshot.columns.free.copy(), [pair], {0: loads})
    one, two = packing[0][0].gpus
    assert DGX1_V100[one][two] == np.max(DGX1_V100)


def test_what_failed_with_a_part_drawn_already_fits_when_that_came_back() -> None:
    """Ten workers take all of a node before they fail; eight then find the whole node again."""
    shelves = shelves_of(cluster(8, 1))
    assert shelves.place(gang(shape(1, tasks=10))) is None
    assert rows(shelves.place(gang(shape(1, tasks=8)))) == [(0, 8)]
    wide = shelves_of(cluster(4, 2))
    wanted = gang(shape(0, tasks=3, cpu_milli=40_000))
    assert rows(wide.place(wanted)) == [(1, 2), (0, 1)]
    loads = wide.place(gang(shape(0, tasks=1, cpu_milli=40_000)))
    assert rows(loads) == [(0, 1)]
    assert loads is not None
    wide.give(wanted, loads)
    assert wide.place(gang(shape(0, tasks=1, cpu_milli=40_000))) is not None
