"""Simulated runs made by hand: outcomes in one line, and random ones for properties."""

from __future__ import annotations

from hypothesis import strategies as st

from scheduler.simulator.result import Cycle, JobOutcome, Run, RunResult
from scheduler.simulator.workload import Arrivals


def outcome(
    job_id: str = "a",
    *,
    gpus: float = 1.0,
    submit_s: float = 0.0,
    duration_s: float = 10.0,
    tenant: str = "t",
    spans: tuple[tuple[float, float], ...] = (),
    overhead_s: float = 0.0,
    completed: bool = True,
    preemptions: int = 0,
) -> JobOutcome:
    """A job that ran in `spans`; each attempt's first `overhead_s` seconds count for nothing."""
    return JobOutcome(
        id=job_id,
        tenant=tenant,
        gpus=gpus,
        submit_s=submit_s,
        duration_s=duration_s,
        first_start_s=spans[0][0] if spans else None,
        end_s=spans[-1][1] if spans and completed else None,
        preemptions=preemptions,
        restarts=max(0, len(spans) - 1),
        lost_s=overhead_s * len(spans),
        runs=tuple(
            Run(start, end, min(start + overhead_s, end), end, gpus) for start, end in spans
        ),
    )


def run_result(
    *jobs: JobOutcome,
    gpus_total: float = 8.0,
    policy: str = "fifo",
    arrivals: Arrivals = Arrivals.TIMED,
    cycles: tuple[Cycle, ...] = (),
    seed: int = 0,
) -> RunResult:
    return RunResult(
        workload="hand-made",
        policy=policy,
        seed=seed,
        cluster="1 nodes, 8 GPUs (1 x 8 H100)",
        gpus_total=gpus_total,
        arrivals=arrivals,
        jobs=jobs,
        cycles=cycles,
    )


@st.composite
def outcomes(draw: st.DrawFn, job_id: str) -> JobOutcome:
    """A job with whole-second times: up to three attempts, completed or not."""
    submit = draw(st.integers(0, 20))
    spans = []
    at = submit
    for _ in range(draw(st.integers(0, 3))):
        start = at + draw(st.integers(0, 5))
        at = start + draw(st.integers(1, 8))
        spans.append((float(start), float(at)))
    overhead = draw(st.integers(0, 2))
    useful = sum(max(0.0, end - start - overhead) for start, end in spans)
    return outcome(
        job_id,
        gpus=draw(st.sampled_from([0.5, 1.0, 2.0, 4.0])),
        submit_s=float(submit),
        duration_s=max(1.0, useful),
        tenant=draw(st.sampled_from(["red", "green", "blue"])),
        spans=tuple(spans),
        overhead_s=float(overhead),
        completed=bool(spans) and draw(st.booleans()),
    )


@st.composite
def run_results(draw: st.DrawFn) -> RunResult:
    """A run of up to eight jobs, in order of arrival. The cluster may be overfull: sums hold."""
    jobs = [draw(outcomes(f"j{number}")) for number in range(draw(st.integers(1, 8)))]
    return run_result(*sorted(jobs, key=lambda job: job.submit_s))
