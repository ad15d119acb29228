"""What crosses the border between the store and an executor: orders out, observations back."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from scheduler.model.job import LauncherKind
from scheduler.model.lifecycle import EndCause
from scheduler.model.quantity import AttemptId, GpuId, IntentId, JobId, NodeId, TenantId, UtcSeconds


@dataclass(frozen=True, slots=True)
class LaunchTask:
    """One task of a launch order.

    Attributes:
        gpu_ids: NVML UUIDs, or simulated ids when `simulated`.
        simulated: the task gets no real GPU (CUDA_VISIBLE_DEVICES is empty).
        cpu_milli: thousandths of a core granted to it; 0 when not told.
        memory_mib: host memory granted to it; 0 when not told.
        member: what waits outside to be this task, `namespace/name/uid` of a pod that somebody
            else made; "" when the executor makes it.
    """

    task_index: int
    node_id: NodeId
    node_name: str
    gpu_ids: tuple[GpuId, ...]
    simulated: bool
    cpu_milli: int = 0
    member: str = ""
    memory_mib: int = 0


@dataclass(frozen=True, slots=True)
class LaunchOrder:
    """All that an executor needs to start one attempt; it chooses nothing.

    Attributes:
        number: attempt number of the job, from 1.
        epoch: leader epoch that decided; executors refuse lower ones than they have seen.
        processes: processes per task; world size is `len(tasks) * processes`.
        grace_s: time between the stop signal and SIGKILL.
        max_runtime_s: wall time allowed from start, or None.
        image: container image that the job names, or None.
    """

    attempt_id: AttemptId
    job_id: JobId
    tenant: TenantId
    job_name: str
    number: int
    epoch: int
    tasks: tuple[LaunchTask, ...]
    processes: int
    command: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    launcher: LauncherKind
    stop_signal: str
    grace_s: float
    max_runtime_s: float | None = None
    workdir: str | None = None
    image: str | None = None


@dataclass(frozen=True, slots=True)
class StopOrder:
    """Stop one attempt: signal, wait `grace_s`, then SIGKILL, until nothing of it is left.

    On a cluster each pod has the grace time that it was made with instead.
    """

    attempt_id: AttemptId
    epoch: int
    cause: EndCause
    grace_s: float


class IntentKind(StrEnum):
    """The outside effects the store can order."""

    LAUNCH = "launch"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class Intent:
    """A committed order to act outside; `order` holds everything needed."""

    id: IntentId
    kind: IntentKind
    order: LaunchOrder | StopOrder


class Outcome(StrEnum):
    """What became of an order."""

    DONE = "done"
    REFUSED = "refused"
    """Nothing was started, and nothing will be."""
    UNKNOWN = "unknown"
    """Perhaps done: observe, then decide."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """An executor's answer to an order; `message` says why when it is not `DONE`."""

    outcome: Outcome
    message: str = ""


class Phase(StrEnum):
    """What an executor can prove about an attempt."""

    ABSENT = "absent"
    """Never started here and never will be (a tombstone stands)."""
    UNCLAIMED = "unclaimed"
    """No trace of it: it may still start if somebody launches it."""
    STARTING = "starting"
    RUNNING = "running"
    EXITED = "exited"
    """Ended, with an exit record; no process of it is left."""
    VANISHED = "vanished"
    """Its launcher died without an exit record, and no process of it is left."""
    UNKNOWN = "unknown"
    """Cannot be told now; nothing may be freed."""


@dataclass(frozen=True, slots=True)
class RankExit:
    """How one rank ended: exit code, or the signal that killed it."""

    rank: int
    exit_code: int | None
    signal: int | None


@dataclass(frozen=True, slots=True)
class AttemptObservation:
    """What an executor sees of an attempt now.

    Attributes:
        cause: why it ended, when it has; the launcher knows `completed`, `user`, `timed_out`,
            `cancelled`, `preempted`, `infrastructure`.
        started_at: when all ranks had been started; None if that never happened.
        first_failure: the rank that ended the gang, if one did.
    """

    attempt_id: AttemptId
    phase: Phase
    started_at: UtcSeconds | None = None
    ended_at: UtcSeconds | None = None
    cause: EndCause | None = None
    ranks: tuple[RankExit, ...] = ()
    first_failure: RankExit | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class ExpectedAttempt:
    """A live attempt as the store knows it.

    Attributes:
        launch_claimed: whether its launch intent was ever claimed (else nothing can run).
        stop_cause: cause of the committed stop intent, if there is one.
        stop_grace_s: the grace time that intent grants.
    """

    attempt_id: AttemptId
    job_id: JobId
    state: str
    epoch: int
    launch_claimed: bool
    stop_cause: EndCause | None = None
    stop_grace_s: float = 0.0


@dataclass(frozen=True, slots=True)
class LogChunk:
    """A piece of one rank's log.

    Attributes:
        offset: byte offset of `data` in the rank's stream.
        next_offset: where to go on reading.
        end: the stream is complete and `next_offset` is its end.
    """

    rank: int
    offset: int
    next_offset: int
    data: bytes
    end: bool
