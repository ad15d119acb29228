"""Made-up workloads that look like recorded ones: sizes, run times, tenants and the time of day.

A Poisson process conditioned on its number of arrivals is a set of independent draws from its
intensity, so `jobs` arrivals are drawn over the period in which they offer the load asked for, and
the load comes out exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from scheduler.errors import InvalidRequestError
from scheduler.model.quantity import TenantId
from scheduler.simulator.workload import SimJob, Workload, gang_of

HOUR_S = 3600.0
DAY_S = 86_400.0
WEEK_S = 604_800.0
_GRID_S = 600.0
_SHORTEST_S = 5.0
_JOBS_MAX = 10_000_000
# Users declare limits of up to several times the run time (Mu'alem and Feitelson, IEEE TPDS 2001).
_OVERESTIMATE = 5.0


class Family(StrEnum):
    """What `--generate` may name."""

    PHILLY_LIKE = "philly-like"
    GANG_HEAVY = "gang-heavy"


@dataclass(frozen=True, slots=True)
class _Shape:
    """Sizes and run times of a family.

    Attributes:
        sizes: GPUs of a job -> how often.
        median_s: median run time by GPUs of a job: log-normal, `sigma` in natural logarithms.
        sigma: spread of log run time.
    """

    sizes: Mapping[int, float]
    median_s: Mapping[int, float]
    sigma: float


# Philly: sizes as in the full trace (93 % one GPU, Jeon et al., USENIX ATC'19); median 2,522 s and
# sigma 1.5 measured on the week 2017-10-09, larger jobs running longer there too. Gang-heavy: sizes
# of Muri's trace 3 (70 % eight GPUs, 11 % thirty-two).
_SHAPES = {
    Family.PHILLY_LIKE: _Shape(
        {1: 0.93, 2: 0.025, 4: 0.02, 8: 0.018, 16: 0.005, 32: 0.002},
        {1: 2_500.0, 2: 2_500.0, 4: 7_200.0, 8: 14_400.0, 16: 14_400.0, 32: 14_400.0},
        1.5,
    ),
    Family.GANG_HEAVY: _Shape(
        {1: 0.135, 2: 0.02, 4: 0.035, 8: 0.70, 32: 0.11},
        {1: 7_200.0, 2: 7_200.0, 4: 14_400.0, 8: 14_400.0, 32: 14_400.0},
        1.5,
    ),
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to make.

    Attributes:
        family: sizes and run times.
        jobs: how many, at least 1.
        load: work offered over work the GPUs could do until the last arrival, above 0.
        tenants: how many; the n-th submits in proportion to 1/n (Zipf).
        diurnal: 0..1, how much busier the afternoon is than the mean, and the night quieter.
        weekend: 0..1, how much of a weekday's rate a weekend day has.
        seed: of every draw.
    """

    family: Family = Family.PHILLY_LIKE
    jobs: int = 1_000
    load: float = 0.9
    tenants: int = 8
    diurnal: float = 0.5
    weekend: float = 0.6
    seed: int = 0


def generate(recipe: Recipe, total_gpus: int, node_gpus: int) -> Workload:
    """The workload of `recipe` for a cluster of `total_gpus`, its largest node of `node_gpus`.

    Sizes above the cluster are not drawn. Starts on a Monday at midnight. O(jobs log jobs).

    Raises:
        InvalidRequestError: the recipe is impossible.
    """
    _check(recipe)
    rng = np.random.default_rng(recipe.seed)
    shape = _SHAPES[recipe.family]
    sizes = np.array([size for size in shape.sizes if size <= total_gpus])
    if not sizes.size:
        raise InvalidRequestError("the cluster has no GPU to generate jobs for")
    weights = np.array([shape.sizes[int(size)] for size in sizes])
    gpus = rng.choice(sizes, recipe.jobs, p=weights / weights.sum())
    medians = np.array([shape.median_s[int(size)] for size in gpus])
    drawn = medians * np.exp(shape.sigma * rng.standard_normal(recipe.jobs))
    run_s = np.maximum(_SHORTEST_S, np.round(drawn, 3))
    horizon_s = float((gpus * run_s).sum()) / (recipe.load * total_gpus)
    arrivals = _arrivals(rng, recipe, horizon_s)
    share = 1.0 / np.arange(1, recipe.tenants + 1)
    tenants = rng.choice(recipe.tenants, recipe.jobs, p=share / share.sum())
    limits = np.ceil(run_s * rng.uniform(1.0, _OVERESTIMATE, recipe.jobs))
    gangs = [gang_of(int(size), node_gpus) for size in gpus]
    return Workload(
        name=f"{recipe.family}-{recipe.jobs}-load{recipe.load:g}-seed{recipe.seed}",
        jobs=tuple(
            SimJob(
                id=f"g{place:07d}",
                submit_s=float(arrivals[place]),
                duration_s=float(run_s[place]),
                tasks=tasks,
                gpus_per_task=per_task,
                limit_s=float(limits[place]),
                tenant=TenantId(f"tenant-{tenants[place]:02d}"),
            )
            for place, (tasks, per_task) in enumerate(gangs)
        ),
    )


def _check(recipe: Recipe) -> None:
    for name, value, good, rule in (
        ("--jobs", recipe.jobs, 1 <= recipe.jobs <= _JOBS_MAX, f"1 to {_JOBS_MAX}"),
        ("--load", recipe.load, 0 < recipe.load < float("inf"), "above 0"),
        ("--tenants", recipe.tenants, recipe.tenants >= 1, "at least 1"),
        ("--diurnal", recipe.diurnal, 0 <= recipe.diurnal <= 1, "0 to 1"),
        ("--weekend", recipe.weekend, 0 <= recipe.weekend <= 1, "0 to 1"),
        ("--seed", recipe.seed, recipe.seed >= 0, "at least 0"),
    ):
        if not good:
            raise InvalidRequestError(f"{name} {value} is impossible; it must be {rule}")


def _arrivals(rng: np.random.Generator, recipe: Recipe, horizon_s: float) -> NDArray[np.float64]:
    """Sorted arrival times, shape (jobs,), the first at 0: draws from the intensity over time."""
    grid = np.linspace(0.0, horizon_s, max(2, int(horizon_s / _GRID_S) + 2))
    middles = (grid[:-1] + grid[1:]) / 2
    expected = np.cumsum(_intensity(middles, recipe) * np.diff(grid))
    cumulative = np.concatenate(([0.0], expected))
    uniform = np.sort(rng.random(recipe.jobs)) * cumulative[-1]
    times = np.interp(uniform, cumulative, grid)
    arrivals: NDArray[np.float64] = np.round(times - times[0], 3)
    return arrivals


def _intensity(at_s: NDArray[np.float64], recipe: Recipe) -> NDArray[np.float64]:
    """Relative rate of arrivals at each instant, shape of `at_s`: busiest at 15:00."""
    hour = (at_s % DAY_S) / HOUR_S
    day = 1.0 + recipe.diurnal * np.cos(2 * np.pi * (hour - 15.0) / 24.0)
    is_weekend = (at_s % WEEK_S) >= 5 * DAY_S
    # A floor, so that a rate of nothing at all (weekend 0) still has an inverse.
    return np.maximum(day * np.where(is_weekend, recipe.weekend, 1.0), 1e-6)
