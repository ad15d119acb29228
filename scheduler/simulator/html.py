"""The report as one HTML page: no script, no outside reference, so that it can be mailed and kept.

The page forbids itself everything but its own style sheet (a Content-Security-Policy with the
sheet's hash); charts are inline SVG. Every word from a workload is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import math
from html import escape

from scheduler.simulator import curves, svg
from scheduler.simulator.report import Figure, ratio_to, rows, shown
from scheduler.simulator.study import Study
from scheduler.simulator.workload import Arrivals

_TENANTS_SHOWN, _TENANTS_LISTED = 14, 60
_HOUR_S, _DAY_S = 3_600.0, 86_400.0
_SPANS = (1.0, 10.0, 60.0, 600.0, _HOUR_S, 10 * _HOUR_S, 2 * _DAY_S, 10 * _DAY_S, 100 * _DAY_S)

_DARK = ("#4fb3f6", "#ff8c4a", "#2fd0a0", "#eda6cb", "#e0b13c", "#9bd3f7", "#c08fd0", "#b5b5b5")
_STYLE = (
    """
:root { color-scheme: light dark; --ink: #1c1f23; --dim: #5b6370; --paper: #ffffff;
  --card: #f7f8fa; --edge: #dfe3e8; --accent: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --dim: #a2aab4; --paper: #14171a; --card: #1c2024; --edge: #333a41;
    --accent: #4fb3f6; }
  svg .tick { fill: #a2aab4; } svg .grid { stroke: #333a41; } svg .axis { stroke: #77818b; }
"""
    + "".join(
        f"  svg .s{n} {{ stroke: {tint}; }} svg .f{n} {{ fill: {tint}; }}\n"
        for n, tint in enumerate(_DARK)
    )
    + """}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 28px 20px 60px; max-width: 1360px; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 26px; margin: 0 0 4px; letter-spacing: -0.01em; }
h2 { font-size: 17px; margin: 0 0 2px; }
p { margin: 4px 0; } .dim { color: var(--dim); }
dl { display: flex; flex-wrap: wrap; gap: 6px 28px; margin: 14px 0 20px; padding: 0; }
dt { color: var(--dim); font-size: 12px; } dd { margin: 0; font-weight: 600; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(480px, 100%), 1fr));
  gap: 16px; margin: 20px 0; }
figure { margin: 0; max-width: 760px; padding: 14px 16px 10px; background: var(--card);
  border: 1px solid var(--edge); border-radius: 10px; } figure p { font-size: 13px; }
svg { display: block; width: 100%; height: auto; margin-top: 8px; }
svg .hover:hover { fill-opacity: 0.12; }
.legend { position: sticky; top: 0; z-index: 1; display: flex; flex-wrap: wrap; gap: 4px 18px;
  padding: 8px 0; background: var(--paper); border-bottom: 1px solid var(--edge); font-size: 13px; }
.legend span { display: inline-flex; align-items: center; gap: 7px; }
.legend svg { width: 28px; height: 10px; margin: 0; }
.tables { display: flex; flex-wrap: wrap; gap: 0 64px; align-items: flex-start; }
.scroll { overflow-x: auto; } section { max-width: 100%; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { padding: 5px 14px 5px 0; text-align: right; border-bottom: 1px solid var(--edge);
  white-space: nowrap; } th:first-child, td:first-child { text-align: left; }
thead th { color: var(--dim); font-weight: 600; font-size: 12px; vertical-align: bottom; }
td small { color: var(--dim); margin-left: 6px; } td.bound { color: var(--accent); }
tbody tr:hover { background: var(--card); } section { margin-top: 26px; }
code { font-family: ui-monospace, monospace; font-size: 13px; }
@media print { .legend { position: static; } figure { break-inside: avoid; } }
"""
)


def page(study: Study) -> str:
    """The whole page. O(jobs log jobs + attempts + cycles) for the plots."""
    digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    policies = [run.result.policy for run in study.runs]
    title = f"{study.workload.name}: {', '.join(policies)}"
    return "".join(
        (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            '<meta http-equiv="Content-Security-Policy"',
            f" content=\"default-src 'none'; style-src 'sha256-{digest}'\">",
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
            _head(study),
            _legend(policies),
            f'<div class="charts">{"".join(_charts(study))}</div>',
            '<div class="tables">',
            _figures(study),
            _sizes(study) if study.workload.arrivals is Arrivals.REPLAY else _tenants(study),
            f"</div>{_notes(study)}",
            "</body></html>\n",
        )
    )


def _head(study: Study) -> str:
    facts = [
        ("jobs", f"{len(study.workload.jobs):,}"),
        ("cluster", study.cluster),
        ("seed", str(study.seed)),
        *((name.replace("_", " "), str(value)) for name, value in study.options.items()),
    ]
    if study.window:
        start, end = study.window
        facts.append(("window", f"{start / _DAY_S:.2f} to {end / _DAY_S:.2f} days"))
    listed = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts)
    return (
        f"<header><h1>{escape(study.workload.name)}</h1>"
        f'<p class="dim">Simulated by Haversack from {escape(study.source)}</p>'
        f"<dl>{listed}</dl></header>"
    )


def _legend(policies: list[str]) -> str:
    keys = [*enumerate(policies), (curves.BOUND, "bound")]
    items = "".join(
        '<span><svg viewBox="0 0 28 10" aria-hidden="true">'
        f'<line {svg.stroke(place)} x1="0" x2="28" y1="5" y2="5"/></svg>'
        f"{escape(name)}</span>"
        for place, name in keys
    )
    return f'<div class="legend" aria-label="Legend">{items}</div>'


def _charts(study: Study) -> list[str]:
    if study.workload.arrivals is Arrivals.REPLAY:
        return [_allocation_chart(study), *_gap_chart(study, svg.Axis("jobs arrived"))]
    days = svg.Axis("days since the first arrival", low=0.0)
    return [
        _utilization_chart(study, days),
        *_wait_chart(study),
        _waiting_chart(study, days),
        *_fairness_chart(study),
        *_gap_chart(study, days),
    ]


def _card(title: str, about: str, drawing: str) -> str:
    return (
        f'<figure><figcaption><h2>{escape(title)}</h2><p class="dim">{escape(about)}</p>'
        f"</figcaption>{drawing}</figure>"
    )


def _utilization_chart(study: Study, days: svg.Axis) -> str:
    title = "Useful GPUs over time"
    about = "Share of all GPUs; no policy's area up to any instant can exceed the bound's."
    share = svg.Axis("useful share of GPUs", low=0.0, high=1.0, tick=_percent)
    return _card(title, about, svg.line_chart(title, about, curves.utilization(study), days, share))


def _wait_chart(study: Study) -> list[str]:
    drawn = curves.wait_distribution(study)
    if not drawn:
        return []
    title = "How long jobs waited"
    about = "Share of completed jobs that waited at most so long; further up and left is better."
    wait = svg.Axis("wait (logarithmic)", log=True, low=1.0, tick=_span, ticks=_SPANS)
    share = svg.Axis("share of jobs", low=0.0, high=1.0, tick=_percent)
    return [_card(title, about, svg.line_chart(title, about, drawn, wait, share))]


def _waiting_chart(study: Study, days: svg.Axis) -> str:
    title = "Jobs waiting over time"
    about = "Length of the queue after each cycle."
    number = svg.Axis("jobs", low=0.0, tick="{:,.4g}".format)
    return _card(title, about, svg.line_chart(title, about, curves.waiting(study), days, number))


def _fairness_chart(study: Study) -> list[str]:
    first = study.runs[0].fairness.tenants if study.runs else ()
    largest = sorted(first, key=lambda tenant: -tenant.gpu_hours)[:_TENANTS_SHOWN]
    if not largest:
        return []
    places = {tenant.tenant: place for place, tenant in enumerate(first)}
    values = [
        [
            held / entitled if entitled > 0 else math.nan
            for run in study.runs
            for tenant in [run.fairness.tenants[places[one.tenant]]]
            for held, entitled in [(tenant.gpu_hours, tenant.entitled_gpu_hours)]
        ]
        for one in largest
    ]
    title = "Fairness by tenant"
    about = (
        "GPU time held over that of the max-min fair share; 1 is fair, right of it more than"
        " fair. The largest tenants."
    )
    labels = [one.tenant for one in largest]
    names = [run.result.policy for run in study.runs]
    ratio = svg.Axis("held over entitled", low=0.0, tick="{:.3g}".format)
    return [_card(title, about, svg.dot_rows(title, about, labels, names, values, ratio))]


def _gap_chart(study: Study, across: svg.Axis) -> list[str]:
    drawn = curves.gaps(study)
    if not drawn:
        return []
    title = "Optimality gap over time"
    about = (
        "What the worst decision of each stretch may have missed at most; at the bottom: proven."
    )
    gap = svg.Axis("gap (logarithmic)", log=True, low=1e-6, high=1.0, tick=_small_percent)
    return [_card(title, about, svg.line_chart(title, about, drawn, across, gap))]


def _allocation_chart(study: Study) -> str:
    title = "GPUs allocated as tasks arrive"
    about = "Both in per cent of the cluster's GPUs; above 100 % more is asked for than there is."
    asked = svg.Axis("GPUs asked for so far, %")
    held = svg.Axis("GPUs allocated, %", high=100.0)
    return _card(title, about, svg.line_chart(title, about, curves.allocation(study), asked, held))


def _figures(study: Study) -> str:
    policies = "".join(f'<th scope="col">{escape(run.result.policy)}</th>' for run in study.runs)
    body = "".join(_figure_row(*row) for row in rows(study))
    return (
        "<section><h2>Figures</h2>"
        '<p class="dim">Small: ratio to the first policy. Bounds hold for every policy.</p>'
        '<div class="scroll"><table><thead><tr><th scope="col">metric</th>'
        f'<th scope="col">bound</th>{policies}</tr></thead><tbody>{body}</tbody></table></div>'
        "</section>"
    )


def _figure_row(figure: Figure, bound: float | None, values: list[float | None]) -> str:
    cells = []
    for place, value in enumerate(values):
        ratio = ratio_to(figure, value, values[0]) if place else ""
        small = f"<small>{ratio}</small>" if ratio else ""
        cells.append(f"<td>{escape(shown(value, figure.unit))}{small}</td>")
    limit = "" if bound is None else escape(shown(bound, figure.unit))
    return (
        f"<tr><td><code>{figure.name}</code></td>"
        f'<td class="bound">{limit}</td>{"".join(cells)}</tr>'
    )


def _tenants(study: Study) -> str:
    if not study.runs:
        return ""
    policies = "".join(
        f'<th scope="col">mean wait<br>{escape(run.result.policy)}</th>' for run in study.runs
    )
    body = []
    tenants = study.runs[0].fairness.tenants
    largest = sorted(range(len(tenants)), key=lambda place: -tenants[place].gpu_hours)
    for place in largest[:_TENANTS_LISTED]:
        tenant = tenants[place]
        waits = "".join(
            f"<td>{shown(run.fairness.tenants[place].wait_s_mean, 's')}</td>" for run in study.runs
        )
        body.append(
            f"<tr><td>{escape(tenant.tenant)}</td><td>{tenant.jobs:,}</td>"
            f"<td>{tenant.gpu_hours:,.0f}</td>{waits}</tr>"
        )
    left_out = len(tenants) - len(body)
    more = f'<p class="dim">{left_out:,} smaller ones are left out.</p>' if left_out else ""
    return (
        f'<section><h2>Tenants</h2>{more}<div class="scroll"><table><thead><tr>'
        '<th scope="col">tenant</th><th scope="col">jobs</th>'
        f'<th scope="col">GPU hours</th>{policies}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div></section>"
    )


def _sizes(study: Study) -> str:
    if not study.runs:
        return ""
    policies = "".join(f'<th scope="col">{escape(run.result.policy)}</th>' for run in study.runs)
    body = []
    for place, size in enumerate(study.runs[0].sizes):
        served = "".join(
            f"<td>{run.sizes[place].served / size.arrived:.2%}</td>" for run in study.runs
        )
        body.append(f"<tr><td>{escape(size.gpus)}</td><td>{size.arrived:,}</td>{served}</tr>")
    return (
        "<section><h2>Served by size</h2>"
        '<p class="dim">Share of the tasks of each size that found a place.</p>'
        '<div class="scroll"><table><thead><tr><th scope="col">GPUs asked</th>'
        f'<th scope="col">arrived</th>{policies}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div></section>"
    )


def _notes(study: Study) -> str:
    left_out = "".join(
        f"<li>{part.records:,} records left out: {escape(part.reason)}</li>"
        for part in study.workload.skipped
    )
    listed = f"<ul>{left_out}</ul>" if left_out else ""
    return (
        f'<section class="dim">{listed}<p>Wait is completion - arrival - run time, so evicted and'
        " restart time count. Times are simulated; only decision_ms is measured by the clock.</p>"
        "</section>"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"


def _small_percent(share: float) -> str:
    return f"{100 * share:.6f}".rstrip("0").rstrip(".") + " %"


def _span(seconds: float) -> str:
    for unit, size in (("d", _DAY_S), ("h", _HOUR_S), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
