"""Reports of hand-made runs: the document, the table, the page."""

from __future__ import annotations

import hashlib
import json
import re
from base64 import b64decode
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from rich.console import Console
from support.sim_runs import outcome, run_result
from typing_extensions import override

from scheduler.simulator import curves
from scheduler.simulator.bounds import bounds_of
from scheduler.simulator.html import page
from scheduler.simulator.report import as_json, document, shown, table
from scheduler.simulator.result import Cycle, JobOutcome, RunResult
from scheduler.simulator.study import Study, evaluated
from scheduler.simulator.workload import Arrivals, SimJob, Skipped, Workload

HOSTILE = "<script>alert(1)</script>\"'&"
DAY_S = 86_400.0
METRICS = {
    *("gpu_allocation_ratio", "gpu_utilization", "gpu_utilization_window"),
    *("gpu_utilization_bound", "wait_s_mean", "wait_s_p50", "wait_s_p99", "jct_s_mean"),
    *("jct_s_p99", "makespan_s", "slowdown_mean", "preemptions", "unplaced"),
}


def jobs(late_s: float, tenant: str) -> tuple[JobOutcome, ...]:
    return tuple(
        outcome(
            f"j{day}",
            gpus=4.0,
            submit_s=day * DAY_S,
            duration_s=DAY_S,
            tenant=tenant if day else "quiet",
            spans=((day * DAY_S + late_s, (day + 1) * DAY_S + late_s),),
        )
        for day in range(4)
    )


def result(policy: str, late_s: float, *, bound: float | None, tenant: str) -> RunResult:
    cycles = tuple(
        Cycle(day * DAY_S, day, 1, 0, 4.0, 8.0, 99.0, bound, decide_ms=late_s) for day in range(4)
    )
    return run_result(*jobs(late_s, tenant), policy=policy, cycles=cycles, seed=3)


def study(*, tenant: str = "busy", policy: str = "fifo") -> Study:
    load = Workload(
        name=f"load of {tenant}",
        jobs=tuple(
            SimJob(id=f"j{day}", submit_s=day * DAY_S, duration_s=DAY_S, gpus_per_task=4)
            for day in range(4)
        ),
        skipped=(Skipped("no run time", 2),),
    )
    window = (DAY_S, 3 * DAY_S)
    runs = (
        result(policy, 3600.0, bound=None, tenant=tenant),
        result("knapsack", 1800.0, bound=100.0, tenant=tenant),
    )
    return Study(
        workload=load,
        runnable=load.jobs,
        source="load.csv (csv)",
        cluster="1 nodes, 8 GPUs (1 x 8 H100)",
        nodes=1,
        gpus_total=8.0,
        seed=3,
        window=window,
        options={"restart_cost_s": 30.0},
        bounds=bounds_of(load, 8.0, window),
        runs=tuple(evaluated(run, window) for run in runs),
    )


def replay() -> Study:
    pods = [
        SimJob(id=f"p{n}", submit_s=float(n), duration_s=0.0, gpus_per_task=4) for n in range(3)
    ]
    load = Workload("pods", tuple(pods), Arrivals.REPLAY)
    outcomes = tuple(
        outcome(pod.id, gpus=4.0, submit_s=pod.submit_s, spans=spans, completed=False)
        for pod, spans in zip(pods, (((1.0, 4.0),), ((2.0, 4.0),), ()), strict=True)
    )
    run = run_result(*outcomes, policy="fgd", arrivals=Arrivals.REPLAY)
    return replace(
        study(),
        workload=load,
        runnable=load.jobs,
        window=None,
        bounds=bounds_of(load, 8.0),
        runs=(evaluated(run, None),),
    )


def test_the_document_has_every_stable_name() -> None:
    found = document(study())
    assert (found["apiVersion"], found["kind"]) == ("haversack.dev/v1alpha1", "SimulationReport")
    assert [run["policy"] for run in found["runs"]] == ["fifo", "knapsack"]
    assert set(found["runs"][0]["metrics"]) >= METRICS
    assert found["timing"]["fifo"]["decision_ms_p99"] == 3600.0
    assert found["workload"]["skipped"] == {"no run time": 2}
    assert found["window_s"] == [DAY_S, 3 * DAY_S]
    metrics = found["runs"][1]["metrics"]
    assert metrics["wait_s_mean"] == pytest.approx(1800.0)
    assert metrics["gap_p50"] == pytest.approx(0.01)
    assert metrics["gpu_utilization_bound"] == found["bounds"]["gpu_utilization_bound"] == 0.75
    assert found["bounds"]["gpu_utilization_run_bound"] == 0.5
    assert [tenant["tenant"] for tenant in found["runs"][0]["tenants"]] == ["busy", "quiet"]


def test_only_timing_differs_between_equal_runs() -> None:
    first, second = study(), study()
    slower = replace(second.runs[0], timing=replace(second.runs[0].timing, decision_ms_p50=9.0))
    second = replace(second, runs=(slower, second.runs[1]))
    assert as_json(first) != as_json(second)
    assert as_json(first, timing=False) == as_json(second, timing=False)
    assert document(first)["digest"] == document(second)["digest"]
    assert "timing" not in json.loads(as_json(first, timing=False))
    assert list(json.loads(as_json(first)))[-1] == "timing"
    other = replace(first, seed=4)
    assert document(first)["digest"] != document(other)["digest"]


def test_a_replay_reports_sizes_and_no_times() -> None:
    found = document(replay())
    metrics = found["runs"][0]["metrics"]
    assert metrics["gpu_allocation_ratio"] == metrics["gpu_allocation_ratio_at_100"] == 1.0
    assert metrics["wait_s_mean"] is metrics["jain_index"] is metrics["completed"] is None
    assert found["runs"][0]["served_by_size"] == [{"gpus": "4", "arrived": 3, "served": 2}]
    assert found["bounds"]["gpu_allocation_ratio_bound"] == 1.0


def printed(shown_study: Study) -> dict[str, list[str]]:
    console = Console(width=200, no_color=True)
    with console.capture() as captured:
        console.print(table(shown_study))
    rows = [re.split(r"\s{2,}", line.strip()) for line in captured.get().splitlines()]
    return {row[0]: row[1:] for row in rows}


def test_the_table_puts_policies_side_by_side() -> None:
    rows = printed(study())
    assert rows["METRIC"] == ["BOUND", "FIFO", "KNAPSACK"]
    assert rows["wait_s_mean"] == ["0.0 s", "60.0 min", "30.0 min x0.50"]
    assert rows["unplaced"] == ["0", "0"]
    assert rows["gpu_utilization_window"] == ["75.00 %", "50.00 %", "50.00 % x1.00"]
    assert rows["gap_p50"] == ["-", "1.00 %"]
    assert "gpu_allocation_ratio_at_100" not in rows
    assert "wait_s_mean" not in printed(replay())


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, "s", "-"),
        (0.0, "s", "0.0 s"),
        (119.0, "s", "119.0 s"),
        (810.0, "s", "13.5 min"),
        (7_569.0, "s", "2.1 h"),
        (8.172e6, "s", "94.6 d"),
        (0.61109, "%", "61.11 %"),
        (12_751, "", "12,751"),
        (1.5, "", "1.500"),
        (13.4321, "ms", "13.4 ms"),
    ],
)
def test_values_are_written_for_people(value: float | None, unit: str, text: str) -> None:
    assert shown(value, unit) == text


class Tags(HTMLParser):
    """Collects what a page could load, run or close wrongly."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.outside: list[str] = []
        self.text: list[str] = []

    @override
    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)
        self.outside += [
            value or ""
            for name, value in attrs
            if name in ("src", "href", "xlink:href", "action", "style") or name.startswith("on")
        ]

    @override
    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    @override
    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    @override
    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.mark.parametrize("shown_study", [study(tenant=HOSTILE, policy=HOSTILE), replay()])
def test_the_page_is_whole_and_reaches_nothing_outside(shown_study: Study) -> None:
    text = page(shown_study)
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert tags.outside == []
    assert tags.seen.isdisjoint({"script", "link", "img", "iframe", "object", "use", "image"})
    assert "@import" not in text
    assert "url(" not in text
    assert text == page(shown_study)


def test_the_page_escapes_what_a_workload_says() -> None:
    text = page(study(tenant=HOSTILE, policy=HOSTILE))
    assert "<script" not in text
    tags = Tags()
    tags.feed(text)
    assert any(HOSTILE in part for part in tags.text)


def test_the_page_allows_itself_only_its_own_style() -> None:
    text = page(study())
    allowed = re.search(r"default-src 'none'; style-src 'sha256-([^']+)'", text)
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert allowed is not None
    assert style is not None
    assert b64decode(allowed[1]) == hashlib.sha256(style[1].encode()).digest()


def test_the_page_has_every_plot_with_words_for_screen_readers() -> None:
    text = page(study())
    for title in (
        *("Useful GPUs over time", "How long jobs waited", "Jobs waiting over time"),
        *("Fairness by tenant", "Optimality gap over time"),
    ):
        assert f"<h2>{title}</h2>" in text
        assert re.search(rf'role="img" aria-label="{title}\. [^"]+"', text)
    assert "2 records left out: no run time" in text
    assert "GPUs allocated as tasks arrive" in page(replay())


def test_a_run_without_a_solver_has_no_gap_and_keeps_the_colours() -> None:
    (gap,) = curves.gaps(study())
    assert (gap.place, gap.name) == (1, "knapsack")
    assert gap.y == pytest.approx([0.01] * 4)
    without = replace(study(), runs=study().runs[:1])
    assert "Optimality gap" not in page(without)


def test_curves_say_what_they_are_named_for() -> None:
    found = study()
    useful = curves.utilization(found)
    assert [curve.name for curve in useful] == ["fifo", "knapsack", "bound"]
    # One job of half the cluster a day: after the first hour, half of the GPUs are useful.
    assert useful[0].y[10:190] == pytest.approx([0.5] * 180)
    waits = curves.wait_distribution(found)
    assert (waits[1].x[0], waits[1].y[-1]) == (1.0, 1.0)
    assert curves.waiting(found)[0].y[-1] == 3.0
    (held, bound) = curves.allocation(replay())
    assert held.y[-1] == bound.y[-1] == 100.0


def test_small_tenants_are_counted_not_listed() -> None:
    crowd = [outcome(f"j{n}", tenant=f"t{n}", spans=((0.0, 10.0 + n),)) for n in range(100)]
    many = replace(study(), runs=(evaluated(run_result(*crowd), None),))
    text = page(many)
    assert "<td>t99</td>" in text
    assert "<td>t39</td>" not in text
    assert "40 smaller ones are left out" in text


def test_a_study_of_nothing_still_has_a_page() -> None:
    nothing = replace(
        study(), workload=Workload("empty", ()), runnable=(), runs=(evaluated(run_result(), None),)
    )
    assert "<h1>empty</h1>" in page(nothing)
