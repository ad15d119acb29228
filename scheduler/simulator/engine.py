"""The simulation: a workload's events in order of time, and the daemon's own cycle after each.

There is no second scheduler here. At each instant everything that happens then is applied to the
ledger, and `run_cycle` runs until one places and evicts nothing. Equal arguments give equal
results, bit for bit, but for the wall times in `Cycle.decide_ms`.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from pathlib import Path
from typing import Any, TypeVar

from policies.service_value import VALUE_PER_GPU_S
from scheduler.cycle import CycleContext, CycleReport, CycleState, run_cycle
from scheduler.decide import remembering
from scheduler.model.feasible import never_fits
from scheduler.model.job import JobShape
from scheduler.model.node import Health, Node
from scheduler.model.ports import Admission, Decider, Effort, Profile
from scheduler.model.quantity import WHOLE_GPU_MILLI, AttemptId, JobId, NodeId
from scheduler.model.terms import Terms
from scheduler.simulator.career import Career, Overheads, careers_of
from scheduler.simulator.clock import SimulatedClock
from scheduler.simulator.cluster import described
from scheduler.simulator.inline_solver import InlineSolver
from scheduler.simulator.ledger import Ledger
from scheduler.simulator.links import LinkQuality
from scheduler.simulator.outages import Mishaps, Outages
from scheduler.simulator.result import Cycle, LinkScore, RunResult
from scheduler.simulator.workload import Arrivals, Workload, gpu_milli

T = TypeVar("T")
Progress = Callable[[int, int], None]
"""Told (jobs that are over, jobs in all), now and then."""

TIMED_EFFORT = Effort(gap_target=0.01)
"""A timed workload is decided on again with every event: the last percent of one decision among
tens of thousands is not worth a linear program."""
_TELL_EVERY = 200


@dataclass(frozen=True, slots=True)
class Options:
    """How to simulate.

    Attributes:
        seed: of node failures, and of whatever the policy draws.
        overheads: what restarts cost.
        outages: how nodes fail; None for nodes that do not.
        batch: jobs that arrive before each decision of a replay.
        effort: limits of one decision; None takes the daemon's for a replay, `TIMED_EFFORT` else.
        terms: costs and limits of placements. Unless it says what a restart wastes, what
            `overheads` say counts, at the worth that our policy gives to a GPU's time.
        rejected_plans: folder for plans that fail verification, which would be a bug.
    """

    seed: int = 0
    overheads: Overheads = field(default_factory=Overheads)
    outages: Outages | None = None
    batch: int = 1
    effort: Effort | None = None
    terms: Terms = field(default_factory=Terms)
    rejected_plans: Path = Path("rejected-plans")


class SimulationError(Exception):
    """The cycle did what it must never do; a bug, never a property of the workload."""


def simulate(
    workload: Workload,
    nodes: Sequence[Node],
    profile: Profile,
    options: Options | None = None,
    progress: Progress | None = None,
    *,
    decider: Decider | None = None,
) -> RunResult:
    """Run `workload` on `nodes` under `profile`, to the end.

    A job that would not fit the empty cluster is refused on arrival, as the API refuses it.

    Args:
        workload: what arrives.
        nodes: the cluster.
        profile: the policy.
        options: seeds, costs and failures; the default has none.
        progress: told how far it is.
        decider: the decision; another one than the daemon's only in tests.

    Cost: one cycle for each instant at which something happens; memory O(jobs + attempts).

    Raises:
        SimulationError: a plan was unsound, or the ledger refused a part of it.
        AssertionError: the decision found fault with its own plan.
    """
    simulation = _Simulation(
        workload, nodes, profile, options or Options(), progress, decider or remembering()
    )
    if workload.arrivals is Arrivals.REPLAY:
        simulation.replay()
    else:
        simulation.run()
    return simulation.result()


class _Event(IntEnum):
    """What happens; at one instant in this order."""

    COMPLETION = 0
    REPAIR = 1
    FAILURE = 2
    ARRIVAL = 3


class _Simulation:
    def __init__(
        self,
        workload: Workload,
        nodes: Sequence[Node],
        profile: Profile,
        options: Options,
        progress: Progress | None,
        decider: Decider,
    ) -> None:
        self._workload = workload
        self._nodes = tuple(nodes)
        self._gpus_total = gpu_milli(self._nodes) / WHOLE_GPU_MILLI
        self._kinds_of_node = _one_of_each(self._nodes)
        self._profile = profile
        self._options = options
        self._progress = progress
        self._clock = SimulatedClock()
        self._ledger = Ledger(nodes, _terms(options))
        self._solver = InlineSolver(profile, decider)
        self._context = CycleContext(
            store=self._ledger,
            solver=self._solver,
            profile=profile,
            effort=_effort(workload, options),
            seed=options.seed,
            hard_limit_s=float("inf"),
            clock=self._clock,
            rejected_plans=options.rejected_plans,
        )
        self._state = CycleState()
        self._careers = careers_of(workload.jobs)
        self._career_of = {career.waiting.id: career for career in self._careers}
        self._cycles: list[Cycle] = []
        self._link_quality = LinkQuality(self._nodes)
        self._links: list[LinkScore] = []
        self._events: list[tuple[float, _Event, int, str]] = []
        self._scheduled = 0
        self._pending = len(self._careers)
        self._arrivals_left = len(self._careers)
        self._node_number = {node.id: number for number, node in enumerate(self._nodes)}
        self._down = 0
        self._mishaps: Mishaps | None = None
        if options.outages is not None:
            self._mishaps = Mishaps(options.outages, len(self._nodes), options.seed)
        self._refused: dict[JobShape, bool] = {}

    # --- Timed workloads -------------------------------------------------------------------------

    def run(self) -> None:
        """Until every job is over, or nothing can happen any more."""
        for career in self._careers:
            self._schedule(career.job.submit_s, _Event.ARRIVAL, career.waiting.id)
        if self._mishaps is not None:
            for number, node in enumerate(self._nodes):
                self._schedule(self._mishaps.next_failure_s(number, 0.0), _Event.FAILURE, node.id)
        while self._events and self._goes_on():
            instant = self._events[0][0]
            self._clock.move_to(instant)
            while self._events and self._events[0][0] == instant:
                _, event, _, key = heapq.heappop(self._events)
                self._happen(event, key)
            self._settle()

    def _goes_on(self) -> bool:
        """Whether a job may still move: not when those left wait for room that will not come."""
        return bool(self._pending and (self._arrivals_left or self._ledger.live or self._down))

    def _schedule(self, at: float, event: _Event, key: str) -> None:
        self._scheduled += 1
        heapq.heappush(self._events, (at, event, self._scheduled, key))

    def _happen(self, event: _Event, key: str) -> None:
        if event is _Event.ARRIVAL:
            self._arrivals_left -= 1
            self._arrive(self._career_of[JobId(key)])
        elif event is _Event.COMPLETION:
            self._complete(AttemptId(key))
        elif event is _Event.FAILURE:
            self._fail(self._nodes[self._node_number[NodeId(key)]])
        else:
            self._repair(self._nodes[self._node_number[NodeId(key)]])

    def _arrive(self, career: Career) -> None:
        shape = career.waiting.shape
        if shape not in self._refused:
            # One task needs one node: there it is enough to ask one node of each kind.
            nodes = self._kinds_of_node if shape.tasks == 1 else self._nodes
            self._refused[shape] = never_fits(shape, nodes) is not None
        if self._refused[shape]:
            self._over()
            return
        self._ledger.submit(career.as_waiting(self._profile.sees, self._options.overheads))

    def _complete(self, attempt_id: AttemptId) -> None:
        if attempt_id not in self._ledger.live:
            return  # it was evicted, or its node failed, before it came to that
        attempt = self._ledger.end(attempt_id)
        career = self._career_of[attempt.job_id]
        career.complete(self._clock.now(), self._options.overheads)
        self._over()

    def _fail(self, node: Node) -> None:
        assert self._mishaps is not None, "only mishaps make nodes fail"
        now, overheads = self._clock.now(), self._options.overheads
        self._down += 1
        self._ledger.put_node(replace(node, health=Health.UNHEALTHY))
        dead = [
            attempt
            for attempt in self._ledger.live.values()
            if any(task.node_id == node.id for task in attempt.tasks)
        ]
        for attempt in dead:
            career = self._career_of[attempt.job_id]
            career.failed(now, overheads)
            self._ledger.end(attempt.id, career.as_waiting(self._profile.sees, overheads))
        back_s = self._mishaps.next_repair_s(self._node_number[node.id], now)
        self._schedule(back_s, _Event.REPAIR, node.id)

    def _repair(self, node: Node) -> None:
        assert self._mishaps is not None, "only mishaps make nodes fail"
        self._down -= 1
        self._ledger.put_node(node)
        fails_s = self._mishaps.next_failure_s(self._node_number[node.id], self._clock.now())
        self._schedule(fails_s, _Event.FAILURE, node.id)

    def _over(self) -> None:
        self._pending -= 1
        done = len(self._careers) - self._pending
        if self._progress is not None and (done % _TELL_EVERY == 0 or not self._pending):
            self._progress(done, len(self._careers))

    # --- Replays ---------------------------------------------------------------------------------

    def replay(self) -> None:
        """The FGD protocol: jobs come in batches and stay; one that finds no place is gone."""
        for start in range(0, len(self._careers), self._options.batch):
            batch = self._careers[start : start + self._options.batch]
            self._clock.move_to(start + len(batch))
            for career in batch:
                self._arrive(career)
            self._settle()
            for job_id in tuple(self._ledger.waiting):
                self._ledger.withdraw(job_id)
            if self._progress is not None:
                self._progress(start + len(batch), len(self._careers))
        for attempt in self._ledger.live.values():
            self._career_of[attempt.job_id].replayed(self._clock.now())

    # --- Cycles ----------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Cycles until one places and evicts nothing."""
        force = False
        while True:
            asked = self._solver.asked
            self._state, report = _finished(run_cycle(self._context, self._state, force=force))
            self._carry_out(report)
            if self._solver.asked > asked:
                self._cycles.append(self._told(report))
            if not (report.placed or report.evicted):
                return
            force = report.deferred > 0

    def _carry_out(self, report: CycleReport) -> None:
        """What the world does about a cycle: jobs start, and evicted ones yield at once."""
        if report.failed or report.refused:
            why = report.rejected[0].message if report.rejected else str(report.refused[:1])
            raise SimulationError(f"at {self._clock.now():g} s: the plan was refused: {why}")
        now, overheads = self._clock.now(), self._options.overheads
        for job_id in report.placed:
            attempt = self._ledger.attempt_of(job_id)
            assert attempt is not None, "it was placed just now"
            self._links += self._link_quality.scores(attempt.tasks)
            ends_s = self._career_of[job_id].begin(now, overheads)
            if self._workload.arrivals is Arrivals.TIMED:
                self._schedule(ends_s, _Event.COMPLETION, attempt.id)
        for attempt_id in report.evicted:
            career = self._career_of[self._ledger.live[attempt_id].job_id]
            career.evicted(now, overheads)
            self._ledger.end(attempt_id, career.as_waiting(self._profile.sees, overheads))

    def _told(self, report: CycleReport) -> Cycle:
        objective = self._profile.admission is Admission.KNAPSACK
        up = (node for node in self._ledger.nodes.values() if node.schedulable)
        return Cycle(
            at_s=self._clock.now(),
            waiting=len(self._ledger.waiting),
            placed=len(report.placed),
            evicted=len(report.evicted),
            gpus_used=self._ledger.held_milli / WHOLE_GPU_MILLI,
            gpus_total=gpu_milli(up) / WHOLE_GPU_MILLI if self._down else self._gpus_total,
            value=report.value if objective else None,
            bound=report.bound if objective else None,
            decide_ms=self._solver.decided_ms,
            standing=report.standing if objective else 0.0,
        )

    def result(self) -> RunResult:
        """What the run left behind."""
        return RunResult(
            workload=self._workload.name,
            policy=self._profile.name,
            seed=self._options.seed,
            cluster=described(self._nodes),
            gpus_total=self._gpus_total,
            arrivals=self._workload.arrivals,
            jobs=tuple(career.outcome() for career in self._careers),
            cycles=tuple(self._cycles),
            links=tuple(self._links),
        )


def _effort(workload: Workload, options: Options) -> Effort:
    if options.effort is not None:
        return options.effort
    return Effort() if workload.arrivals is Arrivals.REPLAY else TIMED_EFFORT


def _terms(options: Options) -> Terms:
    """The terms, with what stopping a job wastes in this simulation."""
    eviction, restart_s = options.terms.eviction, options.overheads.restart_cost_s
    if eviction.restart_s > 0 or not restart_s:
        return options.terms
    eviction = replace(eviction, restart_s=restart_s, value_per_gpu_s=VALUE_PER_GPU_S)
    return replace(options.terms, eviction=eviction)


def _finished(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that waits for nothing outside.

    Raises:
        SimulationError: it wants to wait.
    """
    try:
        work.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    work.close()
    raise SimulationError("a simulated cycle may not wait for anything")


def _one_of_each(nodes: Sequence[Node]) -> tuple[Node, ...]:
    """One node of each kind: alike nodes hold the same single task, or none of them does."""
    kinds = {
        (node.capacity, tuple(gpu.model for gpu in node.gpus), node.links, node.pool): node
        for node in nodes
    }
    return tuple(kinds.values())
