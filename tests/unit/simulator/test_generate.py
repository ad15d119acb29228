"""Generated workloads: the load asked for, the mix of the family, the hours of the day."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from scheduler.errors import InvalidRequestError
from scheduler.simulator.generate import Family, Recipe, generate
from scheduler.simulator.workload import gang_of


def test_equal_seeds_give_equal_workloads() -> None:
    recipe = Recipe(jobs=200, seed=7)
    assert generate(recipe, 64, 8) == generate(recipe, 64, 8)
    assert generate(recipe, 64, 8) != generate(replace(recipe, seed=8), 64, 8)


@pytest.mark.parametrize("family", Family)
def test_the_load_is_the_one_asked_for(family: Family) -> None:
    load = generate(Recipe(family=family, jobs=3_000, load=0.8), 640, 8)
    work = sum(job.gpus * job.duration_s for job in load.jobs)
    span = load.jobs[-1].submit_s
    assert load.jobs[0].submit_s == 0.0
    assert all(1.0 <= (job.limit_s or 0.0) / job.duration_s < 6.0 for job in load.jobs)
    assert work / (640 * span) == pytest.approx(0.8, rel=0.02)
    assert [job.submit_s for job in load.jobs] == sorted(job.submit_s for job in load.jobs)


def test_sizes_tenants_and_hours_follow_the_recipe() -> None:
    load = generate(Recipe(jobs=20_000, tenants=4, diurnal=0.9, weekend=0.2), 320, 8)
    sizes = Counter(job.gpus for job in load.jobs)
    assert sizes[1] / 20_000 == pytest.approx(0.93, abs=0.01)
    tenants = Counter(str(job.tenant) for job in load.jobs)
    assert tenants["tenant-00"] / tenants["tenant-01"] == pytest.approx(2.0, rel=0.1)
    # Whole days only, from the second on, so that each hour is seen equally often.
    hours = Counter(int(job.submit_s % 86_400 // 3_600) for job in load.jobs)
    assert hours[15] > 4 * hours[3]
    days = Counter(int(job.submit_s // 86_400) for job in load.jobs)
    assert days[5] < days[3] / 2


def test_gangs_fit_the_nodes() -> None:
    load = generate(Recipe(family=Family.GANG_HEAVY, jobs=500), 64, 4)
    assert {job.gpus_per_task for job in load.jobs if job.gpus >= 8} == {4}
    assert max(job.gpus for job in load.jobs) == 32


@pytest.mark.parametrize(
    ("gpus", "node_gpus", "gang"),
    [
        (0, 8, (1, 0)),
        (5, 8, (1, 5)),
        (8, 8, (1, 8)),
        (16, 8, (2, 8)),
        (12, 8, (2, 6)),
        (7, 4, (7, 1)),
    ],
)
def test_gang_of(gpus: int, node_gpus: int, gang: tuple[int, int]) -> None:
    assert gang_of(gpus, node_gpus) == gang


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(jobs=0),
        Recipe(load=0.0),
        Recipe(load=float("inf")),
        Recipe(tenants=0),
        Recipe(diurnal=1.5),
        Recipe(weekend=-0.1),
        Recipe(seed=-1),
    ],
)
def test_an_impossible_recipe_is_refused(recipe: Recipe) -> None:
    with pytest.raises(InvalidRequestError, match="is impossible; it must be"):
        generate(recipe, 64, 8)


def test_a_cluster_without_gpus_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="no GPU"):
        generate(Recipe(), 0, 0)
