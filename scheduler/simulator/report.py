"""One workload under several policies, evaluated: as a JSON document and as a terminal table.

The document is deterministic but for its last key, `timing`, which holds what was measured by the
wall clock; `digest` is a hash over all the rest, so that equal runs are told at a glance.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from scheduler.simulator.study import Evaluation, Study
from scheduler.simulator.workload import Arrivals

API_VERSION = "haversack.dev/v1alpha1"
KIND = "SimulationReport"

_OF_TIMED_RUNS = ("completed", "restarts", "lost_gpu_hours")
_TWO_DIGITS_FROM = 0.095
_MINUTE_S, _HOUR_S, _DAY_S = 60.0, 3_600.0, 86_400.0


@dataclass(frozen=True, slots=True)
class Figure:
    """A line of the table: a metric, its bound, and how both are written.

    Attributes:
        name: key in the JSON document.
        unit: "s" seconds, "%" a share, "ms" milliseconds, "" a number.
        bound: key in the document's `bounds`, or "".
        compared: whether its ratio to the first policy says something.
    """

    name: str
    unit: str
    bound: str = ""
    compared: bool = False


FIGURES = (
    Figure("jobs", ""),
    Figure("completed", ""),
    Figure("unplaced", ""),
    Figure("gpu_allocation_ratio", "%", "gpu_allocation_ratio", compared=True),
    Figure("gpu_allocation_ratio_at_100", "%"),
    Figure("gpu_utilization", "%", "gpu_utilization", compared=True),
    Figure("gpu_utilization_window", "%", "gpu_utilization_window", compared=True),
    Figure("wait_s_mean", "s", "wait_s_mean", compared=True),
    Figure("wait_s_p50", "s", compared=True),
    Figure("wait_s_p99", "s", compared=True),
    Figure("jct_s_mean", "s", "jct_s_mean", compared=True),
    Figure("jct_s_p99", "s", compared=True),
    Figure("makespan_s", "s", "makespan_s", compared=True),
    Figure("slowdown_mean", "", compared=True),
    Figure("preemptions", ""),
    Figure("restarts", ""),
    Figure("lost_gpu_hours", ""),
    Figure("jain_index", ""),
    Figure("share_deviation_max", "%"),
    Figure("finish_ratio_worst", ""),
    Figure("finish_ratio_unfair", "%"),
    Figure("link_bandwidth_ratio", "%", "link_bandwidth_ratio", compared=True),
    Figure("gap_p50", "%"),
    Figure("gap_p99", "%"),
    Figure("cycles", ""),
    Figure("decision_ms_p50", "ms"),
    Figure("decision_ms_p99", "ms"),
)
"""What reports show, in this order; figures that no run has are left out."""


def figures_of(run: Evaluation) -> dict[str, float | int | None]:
    """All deterministic figures of a run by name; those a replay has no use for are None."""
    fairness = {name: value for name, value in asdict(run.fairness).items() if name != "tenants"}
    found = {**asdict(run.metrics), **fairness}
    if run.result.arrivals is Arrivals.REPLAY:
        found.update(dict.fromkeys((*fairness, *_OF_TIMED_RUNS)))
    return found


def document(study: Study, *, timing: bool = True) -> dict[str, Any]:
    """The study as plain data with stable keys; `timing` last, or left out."""
    bounds = {f"{name}_bound": value for name, value in asdict(study.bounds).items()}
    # The plain name is the bound of the window, which is the one to quote.
    bounds["gpu_utilization_run_bound"] = bounds["gpu_utilization_bound"]
    bounds["gpu_utilization_bound"] = bounds.pop("gpu_utilization_window_bound")
    whole: dict[str, Any] = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "workload": {
            "name": study.workload.name,
            "source": study.source,
            "arrivals": study.workload.arrivals.value,
            "jobs": len(study.workload.jobs),
            "gpus_asked": study.workload.gpus,
            "skipped": {part.reason: part.records for part in study.workload.skipped},
        },
        "cluster": {
            "description": study.cluster,
            "nodes": study.nodes,
            "gpus": study.gpus_total,
        },
        "seed": study.seed,
        "window_s": list(study.window) if study.window else None,
        "options": dict(study.options),
        "bounds": bounds,
        "runs": [_run_document(run, bounds["gpu_utilization_bound"]) for run in study.runs],
    }
    text = json.dumps(whole, sort_keys=True, allow_nan=False)
    whole["digest"] = "sha256:" + hashlib.sha256(text.encode()).hexdigest()
    if timing:
        whole["timing"] = {run.result.policy: asdict(run.timing) for run in study.runs}
    return whole


def as_json(study: Study, *, timing: bool = True) -> str:
    """The document as text, ending in a line end."""
    return json.dumps(document(study, timing=timing), indent=2, allow_nan=False) + "\n"


def _run_document(run: Evaluation, utilization_bound: float | None) -> dict[str, Any]:
    metrics = {**figures_of(run), "gpu_utilization_bound": utilization_bound}
    found: dict[str, Any] = {"policy": run.result.policy, "metrics": metrics}
    if run.result.arrivals is Arrivals.REPLAY:
        found["served_by_size"] = [asdict(size) for size in run.sizes]
    else:
        found["tenants"] = [asdict(tenant) for tenant in run.fairness.tenants]
    return found


def rows(study: Study) -> list[tuple[Figure, float | None, list[float | None]]]:
    """(figure, its bound, its value in each run) of every figure that some run has."""
    bounds = asdict(study.bounds)
    columns = [{**figures_of(run), **asdict(run.timing)} for run in study.runs]
    found = []
    for figure in FIGURES:
        values = [column[figure.name] for column in columns]
        if any(value is not None for value in values):
            found.append((figure, bounds[figure.bound] if figure.bound else None, values))
    return found


def table(study: Study) -> Table:
    """The figures of all runs side by side, with bounds, and ratios to the first."""
    grid = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), show_edge=False)
    grid.add_column("METRIC", no_wrap=True, header_style="bold")
    grid.add_column("BOUND", no_wrap=True, header_style="bold", justify="right", style="cyan")
    for run in study.runs:
        grid.add_column(
            run.result.policy.upper(), no_wrap=True, header_style="bold", justify="right"
        )
    for figure, bound, values in rows(study):
        cells = [
            _cell(figure, value, values[0] if place else None) for place, value in enumerate(values)
        ]
        grid.add_row(figure.name, "" if bound is None else shown(bound, figure.unit), *cells)
    return grid


def _cell(figure: Figure, value: float | None, first: float | None) -> Text:
    text = Text(shown(value, figure.unit))
    if ratio := ratio_to(figure, value, first):
        text.append(f" {ratio}", style="dim")
    return text


def ratio_to(figure: Figure, value: float | None, first: float | None) -> str:
    """`value` over `first`, the first policy's, as `x0.73`; "" where that says nothing."""
    if not (figure.compared and value and first):
        return ""
    ratio = value / first
    return f"x{ratio:.2f}" if ratio >= _TWO_DIGITS_FROM else f"x{ratio:.2g}"


def shown(value: float | None, unit: str) -> str:
    """`value` in at most four digits and a unit that people read: `13.5 min`, `61.1 %`."""
    if value is None:
        return "-"
    if unit == "%":
        return f"{100 * value:.2f} %"
    if unit == "ms":
        return f"{value:.3g} ms"
    if unit == "s":
        return _time(value)
    return f"{value:,d}" if isinstance(value, int) else f"{value:,.3f}"


def _time(seconds: float) -> str:
    for unit, size in (("d", _DAY_S), ("h", _HOUR_S), ("min", _MINUTE_S)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
