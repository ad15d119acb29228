"""A study: one workload on one cluster under several policies, from what was asked to figures."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from policies.registry import PROFILES, profile_named
from scheduler.errors import InvalidRequestError
from scheduler.model.feasible import never_fits
from scheduler.model.node import Node
from scheduler.model.ports import Profile
from scheduler.model.quantity import WHOLE_GPU_MILLI
from scheduler.simulator.arrays import arrays_of
from scheduler.simulator.bounds import Bounds, Window, bounds_of, default_window
from scheduler.simulator.career import Overheads, shape_of
from scheduler.simulator.cluster import described, read_nodes
from scheduler.simulator.engine import Options, simulate
from scheduler.simulator.fairness import Fairness, fairness_of
from scheduler.simulator.generate import Recipe, generate
from scheduler.simulator.importers import READERS, Reading, openb
from scheduler.simulator.metrics import (
    Metrics,
    SizeClass,
    Timing,
    metrics_of,
    served_by_size,
    timing_of,
)
from scheduler.simulator.outages import Outages
from scheduler.simulator.result import RunResult
from scheduler.simulator.workload import Arrivals, SimJob, Workload, gpu_milli
from scheduler.virtual import parse_virtual


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One run and its figures."""

    result: RunResult
    metrics: Metrics
    fairness: Fairness
    sizes: tuple[SizeClass, ...]
    timing: Timing


@dataclass(frozen=True, slots=True)
class Study:
    """One workload on one cluster, under each of some policies.

    Attributes:
        workload: what arrived.
        runnable: its jobs without those that would not fit the empty cluster.
        source: where it came from: a file and its format, or a generator and its recipe.
        cluster: the nodes in a few words.
        nodes: how many.
        gpus_total: of them all.
        seed: of everything random.
        window: of `gpu_utilization_window`, seconds from the first arrival.
        options: what else was asked for, by option name.
        bounds: what no policy can beat.
        runs: in the order of `--policy`; ratios are to the first.
    """

    workload: Workload
    runnable: tuple[SimJob, ...]
    source: str
    cluster: str
    nodes: int
    gpus_total: float
    seed: int
    window: Window | None
    options: Mapping[str, object]
    bounds: Bounds
    runs: tuple[Evaluation, ...]


@dataclass(frozen=True, slots=True)
class Request:
    """What to simulate.

    Attributes:
        path: workload file, or None to generate one.
        form: its format, a key of `importers.READERS`.
        columns: our column name -> the file's, for plain CSV.
        recipe: what to generate without a file.
        nodes: node file, or None for `cluster`.
        cluster: description such as `16x8:H100`.
        policies: names of profiles.
        seed: of everything random.
        window: of `gpu_utilization_window`; None takes the default.
        arrive: GPUs asked for over GPUs there are, for replays.
        batch: jobs that arrive before each decision of a replay.
        overheads: what restarts cost.
        outages: how nodes fail, if they do.
        weights: of tenants in the max-min share; 1 for one not named.
    """

    path: Path | None = None
    form: str = "csv"
    columns: Mapping[str, str] = field(default_factory=dict)
    recipe: Recipe = field(default_factory=Recipe)
    nodes: Path | None = None
    cluster: str = ""
    policies: tuple[str, ...] = ("fifo",)
    seed: int = 0
    window: Window | None = None
    arrive: float = 1.3
    batch: int = 1
    overheads: Overheads = field(default_factory=Overheads)
    outages: Outages | None = None
    weights: Mapping[str, float] = field(default_factory=dict)


Watcher = Callable[[str, int, int], None]
"""Told (policy, jobs that are over, jobs in all), now and then."""


def nodes_of(request: Request) -> tuple[Node, ...]:
    """The cluster that was asked for.

    Raises:
        NotFoundError: there is no such file.
        ConfigurationError: the description is malformed.
        InvalidRequestError: the file is, or neither or both were given.
    """
    if (request.nodes is None) == (not request.cluster):
        raise InvalidRequestError(
            "say what cluster to simulate: either --nodes FILE or --cluster DESCRIPTION",
            hint="for example --cluster 16x8:H100",
        )
    return parse_virtual(request.cluster) if request.cluster else read_nodes(_given(request.nodes))


def workload_of(request: Request, nodes: tuple[Node, ...]) -> Workload:
    """The workload that was asked for, a replay already resampled.

    Raises:
        NotFoundError: there is no such file.
        InvalidRequestError: the file is malformed, or the recipe impossible.
    """
    node_gpus = max((node.capacity.gpus for node in nodes), default=0)
    capacity_milli = gpu_milli(nodes)
    if request.path is None:
        return generate(request.recipe, capacity_milli // WHOLE_GPU_MILLI, node_gpus)
    reading = Reading(columns=request.columns, node_gpus=node_gpus)
    found = READERS[request.form](request.path, reading)
    if found.arrivals is Arrivals.REPLAY:
        return openb.resampled(found, capacity_milli, request.arrive, request.seed)
    return found


def run_study(
    request: Request, nodes: tuple[Node, ...], workload: Workload, watch: Watcher | None = None
) -> Study:
    """Simulate `workload` on `nodes` under each policy asked for, one after the other.

    Raises:
        InvalidRequestError: no policy has one of the names.
        SimulationError: a policy's plan was unsound, which is a bug.
    """
    profiles = [_profile(name) for name in request.policies]
    window = request.window or default_window(workload.jobs)
    if workload.arrivals is Arrivals.REPLAY:
        window = None
    options = Options(
        seed=request.seed,
        overheads=request.overheads,
        outages=request.outages,
        batch=request.batch,
    )
    runs = []
    for profile in profiles:
        name = profile.name

        def tell(done: int, total: int, name: str = name) -> None:
            if watch is not None:
                watch(name, done, total)

        result = simulate(workload, nodes, profile, options, tell)
        runs.append(evaluated(result, window, request.weights))
    total = gpu_milli(nodes) / WHOLE_GPU_MILLI
    runnable = _runnable(workload, nodes)
    return Study(
        workload=workload,
        runnable=runnable,
        source=_source(request),
        cluster=described(nodes),
        nodes=len(nodes),
        gpus_total=total,
        seed=request.seed,
        window=window,
        options=_options(request, workload),
        bounds=bounds_of(replace(workload, jobs=runnable), total, window),
        runs=tuple(runs),
    )


def evaluated(
    result: RunResult, window: Window | None, weights: Mapping[str, float] | None = None
) -> Evaluation:
    """`result` with its figures.

    Args:
        result: a run.
        window: of `gpu_utilization_window`.
        weights: of tenants, for their max-min share; 1 for one not named.
    """
    return Evaluation(
        result=result,
        metrics=metrics_of(result, window),
        fairness=fairness_of(arrays_of(result), result.gpus_total, weights),
        sizes=served_by_size(result),
        timing=timing_of(result),
    )


def _runnable(workload: Workload, nodes: tuple[Node, ...]) -> tuple[SimJob, ...]:
    shapes = [shape_of(job) for job in workload.jobs]
    fits = {shape: never_fits(shape, nodes) is None for shape in dict.fromkeys(shapes)}
    return tuple(job for job, shape in zip(workload.jobs, shapes, strict=True) if fits[shape])


def _given(path: Path | None) -> Path:
    assert path is not None, "checked by the caller"
    return path


def _profile(name: str) -> Profile:
    if name not in PROFILES:
        near = difflib.get_close_matches(name, PROFILES, n=1)
        raise InvalidRequestError(
            f"no policy is called {name!r}; there are {', '.join(sorted(PROFILES))}",
            hint=f"did you mean {near[0]!r}?" if near else "",
        )
    return profile_named(name)


def _source(request: Request) -> str:
    if request.path is not None:
        return f"{request.path.name} ({request.form})"
    recipe = request.recipe
    return f"{recipe.family} generator, load {recipe.load:g}, seed {recipe.seed}"


def _options(request: Request, workload: Workload) -> dict[str, object]:
    if workload.arrivals is Arrivals.REPLAY:
        return {"arrive": request.arrive, "batch": request.batch}
    found: dict[str, object] = {"restart_cost_s": request.overheads.restart_cost_s}
    if request.outages is not None:
        found["mtbf_s"] = request.outages.mtbf_s
        found["mttr_s"] = request.outages.mttr_s
        found["checkpoint_every_s"] = request.overheads.checkpoint_every_s
    if request.weights:
        found["weights"] = dict(sorted(request.weights.items()))
    return found
