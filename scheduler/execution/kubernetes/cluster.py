"""What the API server shows, as of now: nodes, the pods on them, and pods that wait for us.

Fed by readers in the event loop's thread; executors look from other threads, so every look takes
the lock. What is kept is only what was seen: the store, not this picture, says what was decided.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from scheduler.execution.kubernetes import labels
from scheduler.execution.kubernetes.members import membership
from scheduler.execution.kubernetes.nodes import KubeNode, external_of, model_node
from scheduler.execution.kubernetes.pods import Pod
from scheduler.model.node import Node
from scheduler.model.quantity import AttemptId, GpuId

Told = Callable[[], None]


def attempt_of(pod: Pod) -> AttemptId | None:
    """The attempt that a pod was bound or made for."""
    written = pod.annotation(labels.ATTEMPT) or pod.label(labels.ATTEMPT)
    return AttemptId(written) if written else None


@dataclass(frozen=True, slots=True)
class NodeChanges:
    """What is different from the last look.

    Attributes:
        seen: nodes as they are now, less what pods of others take of them.
        gone: names of nodes that are no longer there.
    """

    seen: tuple[Node, ...]
    gone: tuple[str, ...]


@dataclass(slots=True)
class Cluster:
    """The picture.

    Attributes:
        told: called (in the loop's thread) when there is something to take in.
    """

    told: Told
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _nodes: dict[str, KubeNode] = field(default_factory=dict)
    _pods: dict[str, Pod] = field(default_factory=dict)
    _on_node: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    _of_attempt: defaultdict[AttemptId, dict[str, None]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    _of_group: defaultdict[str, dict[str, None]] = field(default_factory=lambda: defaultdict(dict))
    _group_of: dict[str, str] = field(default_factory=dict)
    _repelling: dict[str, None] = field(default_factory=dict)
    _waiting: dict[str, None] = field(default_factory=dict)
    _ours: dict[AttemptId, frozenset[GpuId]] = field(default_factory=dict)
    _changed_nodes: set[str] = field(default_factory=set)
    _lost: dict[str, None] = field(default_factory=dict)
    _pods_changed: bool = False
    _watchers: dict[AttemptId, Callable[[AttemptId], None]] = field(default_factory=dict)

    # --- What attempts are ours ------------------------------------------------------------------

    def expect(self, attempt_id: AttemptId, gpus: Iterable[GpuId] = ()) -> None:
        """The store holds room for this attempt: its pods are no use by others.

        Args:
            attempt_id: the attempt.
            gpus: what it holds; for GPUs without identity of their own, the places counted for it.
        """
        with self._lock:
            known = attempt_id in self._ours
            self._ours[attempt_id] = frozenset(gpus) or self._ours.get(attempt_id, frozenset())
            if not known:
                self._touch_nodes_of((attempt_id,))

    def release(self, attempt_id: AttemptId) -> None:
        """The store holds nothing for it: pods of it that are still there are strangers'."""
        with self._lock:
            self._ours.pop(attempt_id, None)
            self._watchers.pop(attempt_id, None)
            self._touch_nodes_of((attempt_id,))
        self.told()

    def watch(self, attempt_id: AttemptId, changed: Callable[[AttemptId], None]) -> None:
        """Call `changed` whenever a pod of the attempt changes."""
        with self._lock:
            self._watchers[attempt_id] = changed

    def pods_of(self, attempt_id: AttemptId) -> tuple[Pod, ...]:
        """Its pods that are there, in the order in which they were first seen."""
        with self._lock:
            return tuple(self._pods[key] for key in self._of_attempt.get(attempt_id, ()))

    def attempts(self) -> tuple[AttemptId, ...]:
        """Every attempt that some pod names."""
        with self._lock:
            return tuple(self._of_attempt)

    # --- What waits ------------------------------------------------------------------------------

    def pod(self, key: str) -> Pod | None:
        """The pod of `namespace/name/uid`, if it is there."""
        with self._lock:
            return self._pods.get(key)

    def waiting(self) -> tuple[Pod, ...]:
        """Pods that name us as their scheduler and are neither bound nor at an end."""
        with self._lock:
            return tuple(self._pods[key] for key in self._waiting)

    def take_pods_changed(self) -> bool:
        """Whether a pod that we schedule came, changed or went since the last call."""
        with self._lock:
            changed, self._pods_changed = self._pods_changed, False
            return changed

    def pods_not_taken(self) -> None:
        """What `take_pods_changed` said could not be taken in: say it again."""
        with self._lock:
            self._pods_changed = True

    def take_lost(self, among: Collection[str]) -> tuple[str, ...]:
        """Of these pods, those that were deleted, or ended, since they were last asked for."""
        with self._lock:
            lost = tuple(key for key in self._lost if key in among)
            self._lost.clear()
            return lost

    def in_groups(self, groups: Collection[str]) -> tuple[Pod, ...]:
        """Pods of these groups that name us as their scheduler, bound ones too."""
        with self._lock:
            keys = [key for group in sorted(groups) for key in self._of_group.get(group, ())]
            return tuple(self._pods[key] for key in keys)

    def repelling(self) -> tuple[Pod, ...]:
        """Placed pods that keep others away from them."""
        with self._lock:
            return tuple(self._pods[key] for key in self._repelling)

    def resources(self) -> frozenset[str]:
        """Names of all resources that some node offers."""
        with self._lock:
            found = {name for node in self._nodes.values() for name, _ in node.extras}
            found |= {node.gpu_resource for node in self._nodes.values() if node.gpu_resource}
            return frozenset(found)

    # --- Nodes -----------------------------------------------------------------------------------

    def take_node_changes(self) -> NodeChanges:
        """What nodes came, changed or went since the last call. O(pods on them)."""
        with self._lock:
            names = sorted(self._changed_nodes)
            self._changed_nodes.clear()
            seen = tuple(self._seen(name) for name in names if name in self._nodes)
            return NodeChanges(seen, tuple(name for name in names if name not in self._nodes))

    def give_back(self, changes: NodeChanges) -> None:
        """They could not be stored: tell them again."""
        with self._lock:
            self._changed_nodes.update(node.name for node in changes.seen)
            self._changed_nodes.update(changes.gone)

    def _seen(self, name: str) -> Node:
        """The node, less what pods on it take that no attempt of the store holds."""
        theirs, held = [], set[GpuId]()
        for key in sorted(self._on_node.get(name, ())):
            pod = self._pods[key]
            attempt_id = attempt_of(pod)
            if attempt_id is None or attempt_id not in self._ours:
                theirs.append(pod)
                continue
            held |= self._ours[attempt_id]
            held |= {GpuId(gpu) for gpu in pod.annotation(labels.GPUS).split(",") if gpu}
        return model_node(self._nodes[name], external_of(theirs), held)

    def _touch_nodes_of(self, attempts: Iterable[AttemptId]) -> None:
        for attempt_id in attempts:
            for key in self._of_attempt.get(attempt_id, ()):
                if self._pods[key].node_name:
                    self._changed_nodes.add(self._pods[key].node_name)

    # --- What readers tell -----------------------------------------------------------------------

    def node_seen(self, node: KubeNode) -> None:
        """It is new or has changed."""
        with self._lock:
            self._nodes[node.name] = node
            self._changed_nodes.add(node.name)
        self.told()

    def node_gone(self, name: str, uid: str) -> None:
        """It has left the cluster; its pods go by themselves."""
        with self._lock:
            known = self._nodes.get(name)
            if known is not None and known.uid == uid:  # else another has taken its name
                del self._nodes[name]
                self._changed_nodes.add(name)
        self.told()

    def pod_seen(self, pod: Pod) -> None:
        """It is new or has changed."""
        with self._lock:
            key = str(pod.ref)
            before = self._pods.get(key)
            self._unlink(key, before)
            self._pods[key] = pod
            self._link(key, pod)
            watchers = self._news(before, pod)
        self._tell(watchers)

    def pod_gone(self, key: str) -> None:
        """It is no longer there."""
        with self._lock:
            before = self._pods.pop(key, None)
            self._unlink(key, before)
            watchers = self._news(before, None)
        self._tell(watchers)

    def _tell(self, watchers: Mapping[AttemptId, Callable[[AttemptId], None]]) -> None:
        for attempt_id, changed in watchers.items():
            changed(attempt_id)
        self.told()

    def _link(self, key: str, pod: Pod) -> None:
        if pod.takes_room:
            self._on_node[pod.node_name].add(key)
        attempt_id = attempt_of(pod)
        if attempt_id is not None:
            self._of_attempt[attempt_id][key] = None
        if pod.takes_room and pod.constraints.repulsions:
            self._repelling[key] = None
        if pod.scheduler_name != labels.SCHEDULER_NAME or pod.phase.terminal:
            return
        group = self._group_of[key] = membership(pod).group
        self._of_group[group][key] = None
        if pod.waiting:
            self._waiting[key] = None

    def _unlink(self, key: str, pod: Pod | None) -> None:
        if pod is None:
            return
        self._waiting.pop(key, None)
        self._repelling.pop(key, None)
        group = self._group_of.pop(key, None)
        if group is not None:
            self._of_group[group].pop(key, None)
            if not self._of_group[group]:
                del self._of_group[group]
        self._on_node[pod.node_name].discard(key)
        attempt_id = attempt_of(pod)
        if attempt_id is not None:
            self._of_attempt[attempt_id].pop(key, None)
            if not self._of_attempt[attempt_id]:
                del self._of_attempt[attempt_id]

    def _news(
        self, before: Pod | None, after: Pod | None
    ) -> dict[AttemptId, Callable[[AttemptId], None]]:
        """Note what a change means; the watchers to tell."""
        watchers = {}
        for pod in (before, after):
            if pod is None:
                continue
            attempt_id = attempt_of(pod)
            if attempt_id in self._watchers:
                watchers[attempt_id] = self._watchers[attempt_id]
            if pod.node_name and attempt_id not in self._ours:
                self._changed_nodes.add(pod.node_name)
            if pod.scheduler_name == labels.SCHEDULER_NAME:
                self._pods_changed = True
                if after is None or after.deleting or after.phase.terminal:
                    self._lost[str(pod.ref)] = None
        return watchers


@dataclass(frozen=True, slots=True)
class NodeSink:
    """Takes a reader's nodes into the picture."""

    cluster: Cluster

    def replaced(self, objects: Mapping[str, KubeNode], /) -> None:
        """The first whole picture."""
        for node in objects.values():
            self.cluster.node_seen(node)

    def changed(self, seen: KubeNode, /) -> None:
        """New, or different."""
        self.cluster.node_seen(seen)

    def deleted(self, key: str, /) -> None:
        """Gone."""
        self.cluster.node_gone(key.split("/")[1], key.split("/")[2])


@dataclass(frozen=True, slots=True)
class PodSink:
    """Takes a reader's pods into the picture."""

    cluster: Cluster

    def replaced(self, objects: Mapping[str, Pod], /) -> None:
        """The first whole picture."""
        for pod in objects.values():
            self.cluster.pod_seen(pod)

    def changed(self, seen: Pod, /) -> None:
        """New, or different."""
        self.cluster.pod_seen(seen)

    def deleted(self, key: str, /) -> None:
        """Gone."""
        self.cluster.pod_gone(key)
