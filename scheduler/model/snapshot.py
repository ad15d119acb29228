"""The immutable view of cluster and queue that one cycle decides on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from scheduler.model.job import WaitingJob
from scheduler.model.node import Gpu, Node
from scheduler.model.plan import NodeUse, TaskPlacement
from scheduler.model.quantity import AttemptId, JobId, NodeId, Resources, TenantId, UtcSeconds


@dataclass(frozen=True, slots=True)
class LiveAttempt:
    """An attempt that holds its allocations (placed, launching, running, stopping, suspect)."""

    id: AttemptId
    job_id: JobId
    tenant: TenantId
    priority: int
    preemptible: bool
    since: UtcSeconds
    tasks: tuple[TaskPlacement, ...]


@dataclass(frozen=True, slots=True)
class SnapshotDelta:
    """What changed between two revisions; applying it twice changes nothing more.

    Attributes:
        base_revision: revision the delta starts from; 0 replaces everything.
        revision: revision it leads to.
    """

    base_revision: int
    revision: int
    nodes: tuple[Node, ...] = ()
    nodes_gone: tuple[NodeId, ...] = ()
    live: tuple[LiveAttempt, ...] = ()
    live_gone: tuple[AttemptId, ...] = ()
    waiting: tuple[WaitingJob, ...] = ()
    waiting_gone: tuple[JobId, ...] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Nodes, what is live on them, and who waits. Mappings must not be written to.

    Attributes:
        revision: journal revision this view stands at.
        nodes: by id, iteration order is by name.
    """

    revision: int = 0
    nodes: Mapping[NodeId, Node] = field(default_factory=dict)
    live: Mapping[AttemptId, LiveAttempt] = field(default_factory=dict)
    waiting: Mapping[JobId, WaitingJob] = field(default_factory=dict)

    def apply(self, delta: SnapshotDelta) -> Snapshot:
        """The view after `delta`.

        Cost: one copy of each mapping that changes.

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
            changed = {**base.nodes, **{node.id: node for node in delta.nodes}}
            for node_id in delta.nodes_gone:
                changed.pop(node_id, None)
            nodes = dict(sorted(changed.items(), key=lambda item: (item[1].name, item[0])))
        live = base.live
        if delta.live or delta.live_gone:
            live = {**base.live, **{attempt.id: attempt for attempt in delta.live}}
            for attempt_id in delta.live_gone:
                live.pop(attempt_id, None)
        waiting = base.waiting
        if delta.waiting or delta.waiting_gone:
            waiting = {**base.waiting, **{job.id: job for job in delta.waiting}}
            for job_id in delta.waiting_gone:
                waiting.pop(job_id, None)
        return Snapshot(delta.revision, nodes, live, waiting)

    def use_by_node(self) -> dict[NodeId, NodeUse]:
        """What live attempts hold, by node. O(live tasks)."""
        use: dict[NodeId, NodeUse] = {node_id: NodeUse() for node_id in self.nodes}
        for attempt in self.live.values():
            for task in attempt.tasks:
                use[task.node_id] = use.get(task.node_id, NodeUse()).plus(task)
        return use

    def free_gpus(self, node: Node, use: NodeUse) -> tuple[Gpu, ...]:
        """GPUs of `node` that new work may take, in index order; none on an unschedulable node."""
        if not node.schedulable:
            return ()
        return tuple(gpu for gpu in node.gpus if gpu.schedulable and gpu.id not in use.gpu_ids)

    def free_resources(self, node: Node, use: NodeUse) -> Resources:
        """What new work may take of `node`; zero on an unschedulable node."""
        if not node.schedulable:
            return Resources()
        return use.free_of(node.capacity, len(self.free_gpus(node, use)))
