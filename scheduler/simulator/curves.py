"""What the plots of a report show: lines computed from the records of its runs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from scheduler.model.quantity import WHOLE_GPU_MILLI
from scheduler.simulator.arrays import Arrays, Floats, arrays_of, mean_height
from scheduler.simulator.bounds import work_by
from scheduler.simulator.study import Study
from scheduler.simulator.workload import Arrivals

BINS = 200
"""Points of a curve over time."""
BOUND = -1
_CDF_POINTS = 160
_PROVEN_BELOW = 1e-6
_NEARLY_ALL = 0.995
_CROWDED, _FULL = 60.0, 100.0


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a plot; `x` and `y` have the same shape, `x` ascends.

    `place` is that of the policy among all, which says its colour; `BOUND` for the bound.
    """

    place: int
    name: str
    x: Floats
    y: Floats


def utilization(study: Study) -> list[Curve]:
    """Share of the GPUs that were useful, in days since the first arrival; the bound last.

    The bound is the rate of the most work that any policy can have done by each instant: a policy
    that did less before may go above it, but no policy's area up to an instant exceeds it.
    """
    runs = [arrays_of(run.result) for run in study.runs]
    edges = _edges(study, runs)
    days = _days(edges)
    curves = [
        Curve(
            place,
            study.runs[place].result.policy,
            days,
            mean_height(one.useful_from, one.useful_to, one.run_gpus, edges) / study.gpus_total,
        )
        for place, one in enumerate(runs)
    ]
    if study.runnable:
        times, work = work_by(study.runnable, study.gpus_total)
        rate = np.diff(np.interp(edges, times, work)) / np.diff(edges)
        curves.append(Curve(BOUND, "bound", days, rate / study.gpus_total))
    return curves


def waiting(study: Study) -> list[Curve]:
    """Jobs that wait, by days since the first arrival: the last cycle's number in each bin."""
    runs = [arrays_of(run.result) for run in study.runs]
    edges = _edges(study, runs)
    found = []
    for place, run in enumerate(study.runs):
        at = np.array([cycle.at_s for cycle in run.result.cycles])
        number = np.array([0.0, *(float(cycle.waiting) for cycle in run.result.cycles)])
        last = np.searchsorted(at, edges[1:], side="right")
        found.append(Curve(place, run.result.policy, _days(edges), number[last]))
    return found


def wait_distribution(study: Study) -> list[Curve]:
    """Share of completed jobs that waited at most so many seconds (at least 1, for a log axis)."""
    found = []
    for place, run in enumerate(study.runs):
        arrays = arrays_of(run.result)
        waits = np.sort((arrays.end - arrays.submit - arrays.duration)[arrays.completed])
        if not waits.size:
            continue
        longest = max(10.0, float(waits[-1]))
        x = np.geomspace(1.0, longest, _CDF_POINTS)
        share = np.searchsorted(waits, x, side="right") / waits.size
        found.append(Curve(place, run.result.policy, x, share))
    return found


def gaps(study: Study) -> list[Curve]:
    """Largest proven gap of the decisions in each stretch of time; proven optima at 1e-6."""
    found = []
    timed = study.workload.arrivals is Arrivals.TIMED
    until = _edges(study, [arrays_of(run.result) for run in study.runs])[-1] if timed else math.inf
    for place, run in enumerate(study.runs):
        bounded = [
            cycle for cycle in run.result.cycles if cycle.gap is not None and cycle.at_s <= until
        ]
        if not bounded:
            continue
        at = np.array([cycle.at_s for cycle in bounded])
        gap = np.array([cycle.gap for cycle in bounded], dtype=np.float64)
        if len(at) > BINS:
            parts = np.array_split(np.arange(len(at)), BINS)
            at = np.array([at[part[-1]] for part in parts])
            gap = np.array([gap[part].max() for part in parts])
        found.append(
            Curve(
                place,
                run.result.policy,
                at / 86_400.0 if timed else at,
                np.maximum(gap, _PROVEN_BELOW),
            )
        )
    return found


def allocation(study: Study) -> list[Curve]:
    """Replays: GPUs held over what was asked for so far, both in per cent; the bound last.

    From where the cluster gets crowded on, if it does.
    """
    asked = np.cumsum([job.total_milli for job in study.workload.jobs]) / WHOLE_GPU_MILLI
    arrived = 100 * asked / study.gpus_total
    # Before the cluster fills up, nothing tells one policy from another.
    start = int(np.searchsorted(arrived, _CROWDED)) if arrived[-1] > _FULL else 0
    places = np.unique(np.linspace(start, len(arrived) - 1, BINS).astype(np.intp))
    found = []
    for place, run in enumerate(study.runs):
        gpus = np.array([job.gpus for job in run.result.jobs])
        started = np.array([job.first_start_s is not None for job in run.result.jobs])
        held = 100 * np.cumsum(gpus * started) / study.gpus_total
        found.append(Curve(place, run.result.policy, arrived[places], held[places]))
    found.append(Curve(BOUND, "bound", arrived[places], np.minimum(arrived, 100.0)[places]))
    return found


def _edges(study: Study, runs: list[Arrays]) -> Floats:
    """Bin edges, seconds: from the first arrival until nearly all jobs are over in every run.

    A single long job may run on for weeks after everything else; it is not worth the plot.
    """
    first = min((one.first_s for one in runs), default=0.0)
    last = study.workload.jobs[-1].submit_s if study.workload.jobs else first
    for one in runs:
        if one.completed.any():
            last = max(last, float(np.quantile(one.end[one.completed], _NEARLY_ALL)))
    return np.linspace(first, max(last, first + 1.0), BINS + 1)


def _days(edges: Floats) -> Floats:
    return (edges[:-1] + edges[1:]) / 2 / 86_400.0
