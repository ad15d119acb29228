"""The doors between layers. Siblings meet only here; `scheduler.main` wires what stands behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from scheduler.model.columns import Floats, Free, Ints
from scheduler.model.execution import (
    AttemptObservation,
    ExpectedAttempt,
    Intent,
    IntentKind,
    LaunchOrder,
    LogChunk,
    Receipt,
    StopOrder,
)
from scheduler.model.job import WaitingJob, Worker
from scheduler.model.lifecycle import JobState
from scheduler.model.node import Node
from scheduler.model.plan import Plan
from scheduler.model.quantity import AttemptId, DecisionId, IntentId, JobId, UtcSeconds
from scheduler.model.snapshot import Snapshot, SnapshotDelta


@dataclass(frozen=True, slots=True)
class OrderedJob:
    """A waiting job with its place in line.

    Attributes:
        rank: 0 for the first.
        value: what starting it now is worth to the knapsack, > 0; consistent with `rank` only
            through the policy that made both.
    """

    job: WaitingJob
    rank: int
    value: float


class QueueOrder(Protocol):
    """Decides who is next and what each job is worth. Pure; one per policy file."""

    @property
    def name(self) -> str:
        """A name for people."""
        ...

    def order(self, waiting: Sequence[WaitingJob], now: UtcSeconds) -> Sequence[OrderedJob]:
        """Eligible jobs, best first. Jobs still in backoff are left out. O(n log n).

        A profile that preempts hands in the running jobs too, as they would wait now.
        """
        ...


class Scoring(Protocol):
    """A node score bound to one working copy of what is free, which changes between calls.

    Scores depend on one node's own state at a time: whoever draws on a node need only ask again
    for that row.
    """

    def rows(self, worker: Worker, rows: Ints) -> Floats:
        """How bad each of these rows is for one `worker`, (len(rows),); the lowest is taken.

        Ties go to the first row. Every row given has room for the worker.
        """
        ...

    def gpu(self, worker: Worker, row: int) -> int:
        """Index of the GPU that a sharing worker (`gpu_milli`) takes on this row."""
        ...


class NodeScore(Protocol):
    """Where work should sit, as long as it fits. Pure; one per policy file."""

    @property
    def name(self) -> str:
        """A name for people."""
        ...

    def on(self, free: Free, snapshot: Snapshot, seed: int) -> Scoring:
        """The score for one decision.

        Args:
            free: the working copy that the decision draws on.
            snapshot: what is decided on; the mix of shapes it shows may weigh in.
            seed: for scores that break ties at random.
        """
        ...


class Admission(StrEnum):
    """How far down the line a decision looks."""

    KNAPSACK = "knapsack"
    """The most valuable set of jobs, by optimisation."""
    IN_ORDER = "in-order"
    """One after the other; the first that does not fit blocks all behind it."""
    SKIP = "skip"
    """One after the other, passing over those that do not fit."""
    EASY = "easy"
    """As IN_ORDER, but the first that does not fit gets a reservation, and those behind it may
    start if they do not delay it (Lifka, JSSPP 1995). Needs expected run times."""


class Preemption(StrEnum):
    """Whether running jobs are stopped for others."""

    NONE = "none"
    REPACK = "repack"
    """Running and waiting jobs compete in order at every decision; who loses is stopped."""
    EVICT = "evict"
    """Running jobs are stopped where the knapsack gains more than it costs."""
    OUTRANK = "outrank"
    """Running jobs are stopped for waiting ones of higher priority, whatever each is worth, and for
    no others; as few as possible, the lowest first."""


class Sees(StrEnum):
    """What a profile may know of run times, in `WaitingJob.runtime_s`."""

    NOTHING = "nothing"
    LIMITS = "limits"
    """The declared maximum, as a user would state it."""
    DURATIONS = "durations"
    """The truth, which only a simulation can know: names of such profiles end in `-oracle`."""


@dataclass(frozen=True, slots=True)
class Profile:
    """A scheduling policy by name: who is next, who may pass, where, and who must yield."""

    name: str
    order: QueueOrder
    score: NodeScore
    admission: Admission = Admission.KNAPSACK
    preemption: Preemption = Preemption.NONE
    sees: Sees = Sees.NOTHING


@dataclass(frozen=True, slots=True)
class Effort:
    """How hard `decide` may work, in deterministic units; wall time is the parent's business.

    Attributes:
        milp_nodes_max: branch-and-bound nodes.
        columns_max: largest exact model built; above it the LP bound and rounding serve.
        lp_iterations_max: simplex iterations of one linear program.
        gap_target: stop when the proven relative gap is at most this.
        order_max: how many jobs of the queue's front the solver looks at.
        placements_max: how many jobs one plan starts at most, so that a cycle stays short.
    """

    milp_nodes_max: int = 2_000
    columns_max: int = 9_000
    lp_iterations_max: int = 200_000
    gap_target: float = 0.001
    order_max: int = 20_000
    placements_max: int = 100_000


class Decider(Protocol):
    """The pure decision: yields ever better complete, verified plans; the first comes fast."""

    def __call__(
        self, snapshot: Snapshot, profile: Profile, effort: Effort, now: UtcSeconds, seed: int
    ) -> Iterator[Plan]:
        """Yield plans of rising value; the last is the decision."""
        ...


@dataclass(frozen=True, slots=True)
class DecisionMeta:
    """How a plan came to be.

    Attributes:
        policy: profile, a name from the policy registry.
        duration_ms: wall time the decision took.
    """

    policy: str
    duration_ms: float


@dataclass(frozen=True, slots=True)
class CommitReport:
    """What became of a plan.

    Attributes:
        decision_id: the stored decision; None when nothing was worth a record.
        placed: jobs that were placed.
        refused: jobs whose placement no longer fitted, and why.
        evicted: attempts that were told to stop.
    """

    decision_id: DecisionId | None
    placed: tuple[JobId, ...] = ()
    refused: tuple[tuple[JobId, str], ...] = ()
    evicted: tuple[AttemptId, ...] = ()


class CycleStore(Protocol):
    """What a scheduling cycle reads and writes: a database, or a simulation's ledger."""

    async def load_delta(self, base_revision: int) -> SnapshotDelta:
        """What changed after `base_revision`; 0 loads everything.

        Raises:
            StorageError: the store does not answer.
        """
        ...

    async def commit(self, plan: Plan, meta: DecisionMeta, now: UtcSeconds) -> CommitReport:
        """Make the plan real, as far as it still fits: each placement whole or not at all.

        Raises:
            FencedError: another leader has taken over; nothing was kept.
            StorageError: the store cannot write; nothing was kept unless the message says that
                this is unknown.
        """
        ...


@dataclass(frozen=True, slots=True)
class DecideResult:
    """What came of a request.

    Attributes:
        plan: the best plan received, unverified; None when none came in time.
        killed: the worker was killed, or had died.
        restarts: workers replaced since the daemon started.
        message: what went wrong, or "".
    """

    plan: Plan | None
    killed: bool
    restarts: int
    message: str = ""


class Solver(Protocol):
    """Where `Decider` runs: in a process that can be killed, or in the caller's own."""

    async def feed(self, delta: SnapshotDelta, full: Callable[[], SnapshotDelta]) -> None:
        """Bring the solver's snapshot up to date; `full` makes it whole when that is needed."""
        ...

    async def decide(
        self,
        delta: SnapshotDelta,
        full: Callable[[], SnapshotDelta],
        *,
        policy: str,
        effort: Effort,
        now: UtcSeconds,
        seed: int,
        hard_limit_s: float,
    ) -> DecideResult:
        """The best plan found within the limits. Never raises for the solver's own failure."""
        ...


class Executor(Protocol):
    """Makes committed orders real. Every call is idempotent, and made in the event loop."""

    async def launch(self, order: LaunchOrder) -> Receipt:
        """Start the attempt unless it was ever started before; DONE also when it already was."""
        ...

    async def stop(self, order: StopOrder) -> Receipt:
        """Make sure the attempt ends, or never starts. DONE means the order is recorded."""
        ...

    async def observe(self, attempt_ids: Sequence[AttemptId]) -> Sequence[AttemptObservation]:
        """The truth about each of these attempts, read from outside; never from memory."""
        ...

    async def watch(
        self, attempt_ids: Sequence[AttemptId], changed: Callable[[AttemptId], None]
    ) -> None:
        """Call `changed` (from any thread) whenever `observe` may answer anew, at least at exit.

        A hint, not a promise: reconciliation finds what a hint missed.
        """
        ...

    async def known(self) -> Sequence[AttemptId]:
        """Every attempt there is a trace of, and which was not to be forgotten.

        What is live of these without being so in the store is stopped: where others may leave
        traces too, only those count that the store confirms.
        """
        ...

    async def forget(self, attempt_ids: Sequence[AttemptId]) -> None:
        """Drop watch state of attempts whose end is stored; their logs stay."""
        ...


class BlockingExecutor(Protocol):
    """An `Executor` whose calls block, each for one attempt; thread-safe per attempt."""

    def launch(self, order: LaunchOrder) -> Receipt:
        """As `Executor.launch`."""
        ...

    def stop(self, order: StopOrder) -> Receipt:
        """As `Executor.stop`."""
        ...

    def observe(self, attempt_id: AttemptId) -> AttemptObservation:
        """As `Executor.observe`."""
        ...

    def watch(self, attempt_id: AttemptId, changed: Callable[[AttemptId], None]) -> None:
        """As `Executor.watch`."""
        ...

    def known(self) -> Sequence[AttemptId]:
        """As `Executor.known`."""
        ...

    def forget(self, attempt_id: AttemptId) -> None:
        """As `Executor.forget`."""
        ...


class LogReader(Protocol):
    """Reads what ranks printed."""

    def ranks(self, attempt_id: AttemptId) -> Sequence[int]:
        """Ranks that have a log, ascending; empty before the start."""
        ...

    def read(self, attempt_id: AttemptId, rank: int, offset: int, limit: int) -> LogChunk:
        """Up to `limit` bytes from `offset`; blocking, bounded by `limit`.

        Raises:
            LookupError: no such rank or attempt on this host.
        """
        ...


class ExecutionStore(Protocol):
    """What executing needs of the store. Each call is one transaction."""

    @property
    def epoch(self) -> int:
        """The leader epoch this store acts under; orders to executors carry it."""
        ...

    async def claim_intents(
        self, kinds: Sequence[IntentKind], limit: int, now: UtcSeconds
    ) -> Sequence[Intent]:
        """Claim pending intents under the current epoch; a launch moves its job to LAUNCHING.

        A launch whose job no longer wants to run is voided instead of claimed. Intents claimed
        before and never settled are returned by `unsettled`.

        Raises:
            FencedError: another leader has taken over.
        """
        ...

    async def unsettled(self) -> Sequence[Intent]:
        """Intents that were claimed and whose outcome was never stored (a crash in between)."""
        ...

    async def settle_many(
        self, receipts: Sequence[tuple[IntentId, Receipt]], now: UtcSeconds
    ) -> None:
        """Store outcomes, all or none. REFUSED on a launch sends the job back to the queue."""
        ...

    async def record_many(
        self, observations: Sequence[AttemptObservation], now: UtcSeconds
    ) -> Sequence[JobState | None]:
        """Fold observations into their jobs' states, all or none; None for what is not new.

        EXITED and VANISHED close the attempt and free its allocations. Idempotent.
        """
        ...

    async def expected(self) -> Sequence[ExpectedAttempt]:
        """Every live attempt."""
        ...


class Inventory(Protocol):
    """What a host offers."""

    def nodes(self) -> Sequence[Node]:
        """The nodes of this host as of now, with health. Blocking; milliseconds."""
        ...
