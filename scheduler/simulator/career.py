"""A job's way through a simulation: what it has done, what it still must, what was lost."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from scheduler.model.job import JobShape, WaitingJob
from scheduler.model.ports import Sees
from scheduler.model.quantity import JobId, Resources, UtcSeconds
from scheduler.simulator.result import JobOutcome, Run
from scheduler.simulator.workload import SimJob


@dataclass(frozen=True, slots=True)
class Overheads:
    """What stopping costs.

    Attributes:
        restart_cost_s: an attempt after the first spends this long before it does useful work.
        checkpoint_every_s: useful seconds between two checkpoints; what lies after the last one is
            lost in a failure. 0 keeps everything. An evicted job saves itself before it yields.
    """

    restart_cost_s: float = 0.0
    checkpoint_every_s: float = 0.0


@dataclass(slots=True)
class Career:
    """One job of the workload, from arrival to completion.

    Attributes:
        job: as recorded.
        waiting: as it was submitted.
        done_s: useful seconds that count.
        held_s: seconds that its attempts ran so far, useful or not.
        started_s: when the attempt that runs began.
        evictions: attempts that the policy ended.
        lost_s: seconds of restarting, and of work that has to be done again.
        runs: attempts that are over.
        end_s: completion.
    """

    job: SimJob
    waiting: WaitingJob
    done_s: float = 0.0
    held_s: float = 0.0
    started_s: float = 0.0
    evictions: int = 0
    lost_s: float = 0.0
    runs: list[Run] = field(default_factory=list)
    end_s: float | None = None

    def begin(self, now: float, overheads: Overheads) -> float:
        """An attempt starts; when it will have done its work if nothing stops it."""
        self.started_s = now
        return now + self._cost_s(overheads) + self.job.duration_s - self.done_s

    def complete(self, now: float, overheads: Overheads) -> None:
        """The attempt that runs has done all there was to do."""
        cost_s = self._cost_s(overheads)
        self._book(now, self.started_s + cost_s, now)
        self.lost_s += cost_s
        self.done_s = self.job.duration_s
        self.end_s = now

    def replayed(self, now: float) -> None:
        """The replay is over; what runs would go on."""
        self._book(now, self.started_s, now)

    def evicted(self, now: float, overheads: Overheads) -> None:
        """The attempt saves itself and yields."""
        self._stopped(now, overheads, checkpoint_every_s=0.0)
        self.evictions += 1

    def failed(self, now: float, overheads: Overheads) -> None:
        """The attempt dies with its node."""
        self._stopped(now, overheads, overheads.checkpoint_every_s)

    def _stopped(self, now: float, overheads: Overheads, checkpoint_every_s: float) -> None:
        useful_from_s = min(now, self.started_s + self._cost_s(overheads))
        useful_s = now - useful_from_s
        if checkpoint_every_s > 0:
            useful_s -= useful_s % checkpoint_every_s
        self.done_s += useful_s
        self.lost_s += now - self.started_s - useful_s
        self._book(now, useful_from_s, useful_from_s + useful_s)

    def _book(self, now: float, useful_from_s: float, useful_to_s: float) -> None:
        self.held_s += now - self.started_s
        self.runs.append(Run(self.started_s, now, useful_from_s, useful_to_s, self.job.gpus))

    def _cost_s(self, overheads: Overheads) -> float:
        return overheads.restart_cost_s if self.runs else 0.0

    def as_waiting(self, sees: Sees, overheads: Overheads) -> WaitingJob:
        """The job as it waits (again), with what its policy may know of run times."""
        total_s = None
        if sees is Sees.DURATIONS or (sees is Sees.LIMITS and self.job.limit_s is None):
            # Where a trace has no limits, its durations stand in for what users would have stated:
            # so do published replays of EASY.
            total_s = self.job.duration_s
        elif sees is Sees.LIMITS:
            total_s = self.job.limit_s
        left_s = None
        if total_s is not None:
            left_s = max(0.0, total_s - self.done_s) + self._cost_s(overheads)
        return replace(
            self.waiting, attempts=len(self.runs), attained_s=self.held_s, runtime_s=left_s
        )

    def outcome(self) -> JobOutcome:
        """What there is to tell."""
        runs = tuple(self.runs)
        return JobOutcome(
            id=self.job.id,
            tenant=self.job.tenant,
            gpus=self.job.gpus,
            submit_s=self.job.submit_s,
            duration_s=self.job.duration_s,
            first_start_s=runs[0].start_s if runs else None,
            end_s=self.end_s,
            preemptions=self.evictions,
            restarts=max(0, len(runs) - 1),
            lost_s=self.lost_s,
            runs=runs,
        )


def careers_of(jobs: tuple[SimJob, ...]) -> tuple[Career, ...]:
    """One career for each job. Ids sort as the jobs arrive, whatever their names. O(jobs)."""
    classes: dict[tuple[str, str, JobShape], str] = {}
    found = []
    for number, job in enumerate(jobs):
        shape = shape_of(job)
        group = (job.tenant, job.queue, shape)
        class_key = classes.setdefault(group, f"c-{len(classes):06}")
        waiting = WaitingJob(
            id=JobId(f"j-{number:09}"),
            tenant=job.tenant,
            queue=job.queue,
            priority=job.priority,
            submitted_at=UtcSeconds(job.submit_s),
            eligible_at=UtcSeconds(job.submit_s),
            shape=shape,
            preemptible=job.preemptible,
            attempts=0,
            class_key=class_key,
        )
        found.append(Career(job, waiting))
    return tuple(found)


def shape_of(job: SimJob) -> JobShape:
    """What a recorded job asks of the cluster."""
    return JobShape(
        tasks=job.tasks,
        per_task=Resources(job.gpus_per_task, job.cpu_milli, job.memory_mib),
        gpu_models=job.gpu_models,
        topology=job.topology,
        gpu_milli=job.gpu_milli,
    )
