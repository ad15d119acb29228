"""The store of a simulation: jobs, live attempts and nodes in memory, behind the cycle's own door.

It refuses what the database refuses, and keeps a journal as the database does, so that a cycle
reads deltas from it. One contract test holds both to the same behaviour.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import Enum

from scheduler.model.job import WaitingJob
from scheduler.model.node import Node
from scheduler.model.plan import Placement, Plan, TaskPlacement
from scheduler.model.ports import CommitReport, DecisionMeta
from scheduler.model.quantity import (
    WHOLE_GPU_MILLI,
    AttemptId,
    DecisionId,
    GpuId,
    JobId,
    NodeId,
    UtcSeconds,
)
from scheduler.model.snapshot import LiveAttempt, SnapshotDelta
from scheduler.model.terms import Terms


class _Of(Enum):
    NODE = "node"
    LIVE = "live"
    WAITING = "waiting"


class _RefusedError(Exception):
    """A placement does not fit any more; the message says what changed."""


@dataclass(slots=True)
class _Held:
    """What live attempts hold of one node."""

    cpu_milli: int = 0
    memory_mib: int = 0
    gpu_milli: dict[GpuId, int] = field(default_factory=dict)


class Ledger:
    """A `CycleStore` in memory.

    Attributes:
        nodes, waiting, live: what there is now; read them freely, change them by methods only.
        held_milli: GPU thousandths that live attempts hold together.
    """

    def __init__(self, nodes: Iterable[Node] = (), terms: Terms | None = None) -> None:
        """Start with `nodes`, an empty queue, and the costs and limits of `terms`."""
        self.nodes: dict[NodeId, Node] = {}
        self.waiting: dict[JobId, WaitingJob] = {}
        self.live: dict[AttemptId, LiveAttempt] = {}
        self.held_milli = 0
        self._terms = Terms() if terms is None else terms
        self._attempt_of: dict[JobId, AttemptId] = {}
        self._held: dict[NodeId, _Held] = {}
        self._journal: list[tuple[_Of, str]] = []
        self._forgotten = 0
        self._attempts = 0
        self._decisions = 0
        for node in nodes:
            self.put_node(node)

    # What happens outside: the engine calls these.

    def put_node(self, node: Node) -> None:
        """A node appears or changes; what it runs stays."""
        self.nodes[node.id] = node
        self._held.setdefault(node.id, _Held())
        self._note(_Of.NODE, node.id)

    def remove_node(self, node_id: NodeId) -> None:
        """A node leaves; what runs on it stays live until it is ended."""
        del self.nodes[node_id]
        self._note(_Of.NODE, node_id)

    def submit(self, job: WaitingJob) -> None:
        """A job arrives.

        Raises:
            ValueError: a job of that id waits or runs already.
        """
        if job.id in self.waiting or job.id in self._attempt_of:
            raise ValueError(f"job {job.id} is there already")
        self.waiting[job.id] = job
        self._note(_Of.WAITING, job.id)

    def withdraw(self, job_id: JobId) -> None:
        """A waiting job leaves for good."""
        del self.waiting[job_id]
        self._note(_Of.WAITING, job_id)

    def end(self, attempt_id: AttemptId, again: WaitingJob | None = None) -> LiveAttempt:
        """An attempt is over and frees what it held; with `again`, its job waits anew."""
        attempt = self.live.pop(attempt_id)
        del self._attempt_of[attempt.job_id]
        for task in attempt.tasks:
            self._hold(task, -1)
        self._note(_Of.LIVE, attempt_id)
        if again is not None:
            self.submit(again)
        return attempt

    def stop(self, attempt_id: AttemptId) -> None:
        """An attempt is told to end; it holds its place until `end`."""
        self.live[attempt_id] = replace(self.live[attempt_id], stopping=True)
        self._note(_Of.LIVE, attempt_id)

    def attempt_of(self, job_id: JobId) -> LiveAttempt | None:
        """The job's live attempt."""
        attempt_id = self._attempt_of.get(job_id)
        return None if attempt_id is None else self.live[attempt_id]

    # What a cycle reads and writes.

    @property
    def revision(self) -> int:
        """How many changes there have been: the journal's head."""
        return self._forgotten + len(self._journal)

    async def load_delta(self, base_revision: int) -> SnapshotDelta:
        """What changed after `base_revision`; everything when that is older than the journal.

        What was read is forgotten: the one reader comes back with what it was given. One that
        lost it, or another one, gets everything. Cost: O(what changed).
        """
        if base_revision == 0 or not self._forgotten <= base_revision <= self.revision:
            return SnapshotDelta(
                base_revision=0,
                revision=self.revision,
                nodes=tuple(self.nodes.values()),
                live=tuple(self.live.values()),
                waiting=tuple(self.waiting.values()),
                terms=self._terms,
            )
        changed = dict.fromkeys(self._journal[base_revision - self._forgotten :])
        revision = self.revision
        self._journal.clear()
        self._forgotten = revision
        nodes = [NodeId(key) for of, key in changed if of is _Of.NODE]
        live = [AttemptId(key) for of, key in changed if of is _Of.LIVE]
        waiting = [JobId(key) for of, key in changed if of is _Of.WAITING]
        return SnapshotDelta(
            base_revision=base_revision,
            revision=revision,
            nodes=tuple(self.nodes[key] for key in nodes if key in self.nodes),
            nodes_gone=tuple(key for key in nodes if key not in self.nodes),
            live=tuple(self.live[key] for key in live if key in self.live),
            live_gone=tuple(key for key in live if key not in self.live),
            waiting=tuple(self.waiting[key] for key in waiting if key in self.waiting),
            waiting_gone=tuple(key for key in waiting if key not in self.waiting),
        )

    async def commit(self, plan: Plan, meta: DecisionMeta, now: UtcSeconds) -> CommitReport:
        """Make the plan real, as far as it still fits: each placement whole or not at all.

        Evicted attempts are told to stop and hold their place until `end`, as in a cluster.
        """
        del meta
        evicted = []
        for eviction in plan.evictions:
            victim = self.live.get(eviction.attempt_id)
            if victim is not None and not victim.stopping:
                self.stop(eviction.attempt_id)
                evicted.append(eviction.attempt_id)
        placed: list[JobId] = []
        refused: list[tuple[JobId, str]] = []
        for placement in plan.placements:
            if placement.job_id in placed:
                refused.append((placement.job_id, "the plan places the job twice"))
                continue
            try:
                self._place(placement, now)
            except _RefusedError as error:
                refused.append((placement.job_id, str(error)))
            else:
                placed.append(placement.job_id)
        if not (placed or refused or evicted):
            return CommitReport(None)
        self._decisions += 1
        decision_id = DecisionId(f"d-{self._decisions:09}")
        return CommitReport(decision_id, tuple(placed), tuple(refused), tuple(evicted))

    def _place(self, placement: Placement, now: UtcSeconds) -> None:
        job = self.waiting.get(placement.job_id)
        if job is None:
            raise _RefusedError("the job no longer waits")
        if job.eligible_at > now:
            raise _RefusedError("the job may not start yet: it waits out a retry")
        shape = job.shape
        if not shape.tasks <= len(placement.tasks) <= shape.tasks_max:
            raise _RefusedError(f"the gang needs {shape.tasks} tasks, not {len(placement.tasks)}")
        granted = []
        try:
            for task in placement.tasks:
                self._check(task)
                self._hold(task, 1)
                granted.append(task)
        except _RefusedError:
            for task in granted:
                self._hold(task, -1)
            raise
        self._attempts += 1
        attempt_id = AttemptId(f"a-{self._attempts:09}")
        job = replace(job, attempts=job.attempts + 1)
        self.live[attempt_id] = LiveAttempt(attempt_id, job, now, placement.tasks)
        self._attempt_of[job.id] = attempt_id
        self._note(_Of.LIVE, attempt_id)
        self.withdraw(job.id)

    def _check(self, task: TaskPlacement) -> None:
        node = self.nodes.get(task.node_id)
        if node is None:
            raise _RefusedError(f"node {task.node_id} has left")
        if not node.schedulable:
            state = "cordoned" if node.cordoned else node.health
            raise _RefusedError(f"node {node.name} is {state}")
        held = self._held[node.id]
        gpus = {gpu.id: gpu for gpu in node.gpus}
        for gpu_id in task.gpu_ids:
            gpu = gpus.get(gpu_id)
            if gpu is None:
                raise _RefusedError(f"GPU {gpu_id} has left node {node.name}")
            if not gpu.schedulable:
                state = "cordoned" if gpu.cordoned else gpu.health
                raise _RefusedError(f"GPU {gpu_id} of node {node.name} is {state}")
            if held.gpu_milli.get(gpu_id, 0) + task.gpu_milli > WHOLE_GPU_MILLI:
                raise _RefusedError("one of its GPUs was taken meanwhile")
        if len(set(task.gpu_ids)) < len(task.gpu_ids):
            raise _RefusedError("one of its GPUs was taken meanwhile")
        over = (
            held.cpu_milli + task.cpu_milli > node.capacity.cpu_milli,
            held.memory_mib + task.memory_mib > node.capacity.memory_mib,
        )
        if any(over):
            raise _RefusedError(f"CPU or memory of node {node.name} was taken meanwhile")

    def _hold(self, task: TaskPlacement, sign: int) -> None:
        held = self._held[task.node_id]
        held.cpu_milli += sign * task.cpu_milli
        held.memory_mib += sign * task.memory_mib
        for gpu_id in task.gpu_ids:
            held.gpu_milli[gpu_id] = held.gpu_milli.get(gpu_id, 0) + sign * task.gpu_milli
        self.held_milli += sign * task.gpu_milli * len(task.gpu_ids)

    def _note(self, of: _Of, key: str) -> None:
        self._journal.append((of, key))
