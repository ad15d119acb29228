"""The immutable view of cluster and queue that one cycle decides on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import TypeVar

from scheduler.model.columns import Columns
from scheduler.model.job import JobShape, WaitingJob
from scheduler.model.node import Node
from scheduler.model.plan import TaskPlacement
from scheduler.model.quantity import AttemptId, JobId, NodeId, TenantId, UtcSeconds
from scheduler.model.terms import Terms

Key = TypeVar("Key")
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class LiveAttempt:
    """An attempt that holds its allocations (placed, launching, running, stopping, suspect).

    Attributes:
        job: the job as it would wait again; `attained_s` and `runtime_s` as of `since`.
        since: when the attempt was placed.
        stopping: whether it was told to end already: it will free its place unasked.
    """

    id: AttemptId
    job: WaitingJob
    since: UtcSeconds
    tasks: tuple[TaskPlacement, ...]
    stopping: bool = False

    @property
    def job_id(self) -> JobId:
        """Its job."""
        return self.job.id

    @property
    def tenant(self) -> TenantId:
        """Its job's tenant."""
        return self.job.tenant

    @property
    def preemptible(self) -> bool:
        """Whether its job may be stopped for another."""
        return self.job.preemptible

    def as_waiting(self, now: UtcSeconds) -> WaitingJob:
        """The job as it would wait at `now`, the time it has run until then counted."""
        ran_s = max(0.0, now - self.since)
        job = self.job
        # Spelt out: repacking asks this of all that runs, and `replace` takes four times as long.
        return WaitingJob(
            job.id,
            job.tenant,
            job.queue,
            job.priority,
            job.submitted_at,
            job.eligible_at,
            job.shape,
            job.preemptible,
            job.attempts,
            job.class_key,
            job.attained_s + ran_s,
            None if job.runtime_s is None else max(0.0, job.runtime_s - ran_s),
            job.evicts,
        )


@dataclass(frozen=True, slots=True)
class SnapshotDelta:
    """What changed between two revisions; applying it twice changes nothing more.

    Attributes:
        base_revision: revision the delta starts from; 0 replaces everything.
        revision: revision it leads to.
        terms: the new terms, or None while they stay.
    """

    base_revision: int
    revision: int
    nodes: tuple[Node, ...] = ()
    nodes_gone: tuple[NodeId, ...] = ()
    live: tuple[LiveAttempt, ...] = ()
    live_gone: tuple[AttemptId, ...] = ()
    waiting: tuple[WaitingJob, ...] = ()
    waiting_gone: tuple[JobId, ...] = ()
    terms: Terms | None = None


@dataclass(frozen=True)
class Snapshot:
    """Nodes, what is live on them, and who waits. Mappings must not be written to.

    Attributes:
        revision: journal revision this view stands at.
        nodes: by id, iteration order is by (name, id).
        terms: costs and limits of placements.
    """

    revision: int = 0
    nodes: Mapping[NodeId, Node] = field(default_factory=dict)
    live: Mapping[AttemptId, LiveAttempt] = field(default_factory=dict)
    waiting: Mapping[JobId, WaitingJob] = field(default_factory=dict)
    terms: Terms = field(default_factory=Terms)

    @cached_property
    def columns(self) -> Columns:
        """The cluster as arrays. O(GPUs + live tasks) once; `apply` carries them on from there."""
        return _columns_of(self)

    @cached_property
    def mix(self) -> Mapping[JobShape, int]:
        """How many jobs of each shape run or wait: what work is typical here.

        O(jobs) once; `apply` carries it on from there.
        """
        return Counter(job.shape for job in self._jobs())

    def _jobs(self) -> Iterator[WaitingJob]:
        yield from (attempt.job for attempt in self.live.values())
        yield from self.waiting.values()

    @cached_property
    def held_milli(self) -> Mapping[TenantId, int]:
        """GPU thousandths that each tenant holds. O(live tasks) once."""
        held: dict[TenantId, int] = {}
        for attempt in self.live.values():
            milli = sum(len(task.gpu_ids) * task.gpu_milli for task in attempt.tasks)
            held[attempt.tenant] = held.get(attempt.tenant, 0) + milli
        return held

    def apply(self, delta: SnapshotDelta) -> Snapshot:
        """The view after `delta`.

        Cost: one copy of each mapping that changes, and of the columns' arrays; when nodes come, go
        or change in more than health, cordons and capacity, the columns are built anew at their
        first use.

        Raises:
            ValueError: the delta starts from another revision than this view's.
        """
        if delta.base_revision == 0:
            base = Snapshot()
        elif delta.base_revision == self.revision:
            base = self
        else:
            raise ValueError(
                f"delta starts at revision {delta.base_revision}, snapshot is at {self.revision}"
            )
        nodes = base.nodes
        if delta.nodes or delta.nodes_gone:
            nodes = _changed(base.nodes, {node.id: node for node in delta.nodes}, delta.nodes_gone)
            known = (base.nodes.get(node.id) for node in delta.nodes)
            if [old and old.name for old in known] != [node.name for node in delta.nodes]:
                nodes = dict(sorted(nodes.items(), key=lambda item: (item[1].name, item[0])))
        live = base.live
        if delta.live or delta.live_gone:
            live = _changed(base.live, {each.id: each for each in delta.live}, delta.live_gone)
        waiting = base.waiting
        if delta.waiting or delta.waiting_gone:
            waiting = _changed(
                base.waiting, {job.id: job for job in delta.waiting}, delta.waiting_gone
            )
        after = Snapshot(delta.revision, nodes, live, waiting, delta.terms or base.terms)
        _carry_on(base, delta, after)
        return after

    def caught_up(self, delta: SnapshotDelta, full: Callable[[], SnapshotDelta]) -> Snapshot:
        """The view after `delta`, or after `full()` where this view missed what came before it.

        So a solver that was replaced, or not fed for a while, is up to date with its next message.
        """
        follows = delta.base_revision in (0, self.revision)
        return self.apply(delta if follows else full())


def _changed(
    before: Mapping[Key, Value], new: Mapping[Key, Value], gone: Iterable[Key]
) -> dict[Key, Value]:
    """A copy with some entries new or changed, and some gone."""
    after = dict(before)  # clones; unpacking would insert one by one
    after.update(new)
    for key in gone:
        after.pop(key, None)
    return after


def _carry_on(base: Snapshot, delta: SnapshotDelta, after: Snapshot) -> None:
    """Bring what was worked out for `base` up to date, instead of working it out again."""
    if delta.base_revision == 0:  # there is time for it now; a decision would have to wait for it
        after.__dict__["columns"] = _columns_of(after)
        return
    columns = _columns_after(base, delta, after.live) if "columns" in base.__dict__ else None
    if columns is not None:
        after.__dict__["columns"] = columns
    if "mix" in base.__dict__:
        after.__dict__["mix"] = _mix_after(base, delta, after)


def _columns_of(snapshot: Snapshot) -> Columns:
    held = chain.from_iterable(attempt.tasks for attempt in snapshot.live.values())
    return Columns.of(snapshot.nodes.values(), held)


def _columns_after(
    base: Snapshot, delta: SnapshotDelta, live: Mapping[AttemptId, LiveAttempt]
) -> Columns | None:
    """The columns of `base` after `delta`; None when they must be built anew."""
    if delta.nodes_gone:
        return None
    columns = base.columns.with_states(delta.nodes) if delta.nodes else base.columns
    named = {attempt.id for attempt in delta.live} | set(delta.live_gone)
    if not named or columns is None:
        return columns
    freed = (task for each in named if each in base.live for task in base.live[each].tasks)
    taken = (task for each in named if each in live for task in live[each].tasks)
    return columns.changed(freed, taken)


def _mix_after(base: Snapshot, delta: SnapshotDelta, after: Snapshot) -> Mapping[JobShape, int]:
    """The mix of `base` after `delta`; shapes that nobody has are left out."""
    attempts = {attempt.id for attempt in delta.live} | set(delta.live_gone)
    waiting = {job.id for job in delta.waiting} | set(delta.waiting_gone)
    change: Counter[JobShape] = Counter()
    for view, sign in ((base, -1), (after, 1)):
        for attempt_id in attempts & view.live.keys():
            change[view.live[attempt_id].job.shape] += sign
        for job_id in waiting & view.waiting.keys():
            change[view.waiting[job_id].shape] += sign
    mix = dict(base.mix)  # clones: no shape is hashed again
    for shape, difference in change.items():
        if difference:
            mix[shape] = mix.get(shape, 0) + difference
            if not mix[shape]:
                del mix[shape]
    return mix
