"""The doors between layers. Siblings meet only here; `scheduler.main` wires what stands behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

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
from scheduler.model.job import WaitingJob
from scheduler.model.lifecycle import JobState
from scheduler.model.node import Node
from scheduler.model.plan import Plan
from scheduler.model.quantity import AttemptId, IntentId, UtcSeconds
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
        """Registry name."""
        ...

    def order(self, waiting: Sequence[WaitingJob], now: UtcSeconds) -> Sequence[OrderedJob]:
        """Eligible jobs, best first. Jobs still in backoff are left out. O(n log n)."""
        ...


@dataclass(frozen=True, slots=True)
class Effort:
    """How hard `decide` may work, in deterministic units; wall time is the parent's business.

    Attributes:
        milp_nodes_max: branch-and-bound nodes.
        columns_max: largest exact model built; above it the LP bound and rounding serve.
        gap_target: stop when the proven relative gap is at most this.
        order_max: how many jobs of the queue's front the solver looks at.
    """

    milp_nodes_max: int = 2_000
    columns_max: int = 9_000
    gap_target: float = 0.001
    order_max: int = 5_000


class Decider(Protocol):
    """The pure decision: yields ever better complete, verified plans; the first is greedy's."""

    def __call__(
        self, snapshot: Snapshot, order: QueueOrder, effort: Effort, now: UtcSeconds, seed: int
    ) -> Iterator[Plan]:
        """Yield plans of rising value; the last is the decision."""
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
    """Makes committed orders real on this kind of host. Every call is idempotent and blocking.

    The composition root calls it from worker threads; it must be thread-safe per attempt.
    """

    def launch(self, order: LaunchOrder) -> Receipt:
        """Start the attempt unless it was ever started before; DONE also when it already was."""
        ...

    def stop(self, order: StopOrder) -> Receipt:
        """Make sure the attempt ends, or never starts. DONE means the order is recorded."""
        ...

    def observe(self, attempt_id: AttemptId) -> AttemptObservation:
        """The truth about one attempt, read from outside; never from memory."""
        ...

    def watch(self, attempt_id: AttemptId, changed: Callable[[AttemptId], None]) -> None:
        """Call `changed` (from any thread) whenever `observe` may answer anew, at least at exit.

        A hint, not a promise: reconciliation finds what a hint missed.
        """
        ...

    def known(self) -> Sequence[AttemptId]:
        """Every attempt this host has a trace of and was not told to forget."""
        ...

    def forget(self, attempt_id: AttemptId) -> None:
        """Drop watch state of an attempt whose end is stored; its logs stay."""
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

    async def settle(self, intent_id: IntentId, receipt: Receipt, now: UtcSeconds) -> None:
        """Store the outcome. REFUSED on a launch sends the job back to the queue."""
        ...

    async def record(self, observation: AttemptObservation, now: UtcSeconds) -> JobState | None:
        """Fold an observation into the job's state; None when it told nothing new.

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
