"""What the API server shows, as of now: nodes, the pods on them, and pods that wait for us.

Fed by readers in the event loop's thread; executors look from other threads, so every look takes
the lock. What is kept is only what was seen: the store, not this picture, says what was decided.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from scheduler.execution.kubernetes import labels
from scheduler.execution.kubernetes.marks import attempt_of, is_ours, is_released, seat_of
from scheduler.execution.kubernetes.members import membership
from scheduler.execution.kubernetes.nodes import KubeNode, external_of, model_node
from scheduler.execution.kubernetes.pods import Pod
from scheduler.execution.kubernetes.raw import count_in
from scheduler.model.node import Node
from scheduler.model.quantity import AttemptId, JobId

Told = Callable[[], None]


@dataclass(frozen=True, slots=True)
class NodeChanges:
    """What is different from the last look.

    Attributes:
        seen: nodes as they are now, less what pods of others take of them.
        gone: names of nodes that are no longer there.
    """

    seen: tuple[Node, ...]
    gone: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Members:
    """The pods of an attempt, as they are shown now.

    Attributes:
        bound: those that were bound for it, or pinned and left to kube-scheduler, in the order in
            which they were first seen.
        unbound: those that wait still, or are not yet seen to be bound or released.
        total: how many it has, those that are gone included; 0 if that is not known.
        lost: one was deleted before it was bound, and its name is taken: never to be whole.
    """

    bound: tuple[Pod, ...]
    unbound: tuple[Pod, ...] = ()
    total: int = 0
    lost: bool = False


@dataclass(frozen=True, slots=True)
class _Held:
    """An attempt that the store holds room for.

    Attributes:
        members: `str(pod.ref)` of its pods; empty if they are not known.
        namespace: where they are then; "" stands for any.
        job_id: the job that it runs, if that is known.
        nodes: where pods of it were seen.
    """

    members: dict[str, None]
    namespace: str = ""
    job_id: JobId | None = None
    nodes: set[str] = field(default_factory=set)

    def has(self, key: str) -> bool:
        """Whether the pod may be one of it."""
        if self.members:
            return key in self.members
        return not self.namespace or key.startswith(f"{self.namespace}/")


@dataclass(slots=True)
class Cluster:
    """The picture.

    Attributes:
        told: called, from any thread, when there is something to take in.
        job_namespace: where pods that name their attempt from the start are of our own making.
    """

    told: Told
    job_namespace: str = ""
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
    _pinned: dict[str, None] = field(default_factory=dict)
    _own: defaultdict[AttemptId, dict[str, None]] = field(default_factory=lambda: defaultdict(dict))
    _own_changed: dict[AttemptId, None] = field(default_factory=dict)
    _held: dict[AttemptId, _Held] = field(default_factory=dict)
    _held_by: dict[str, AttemptId] = field(default_factory=dict)
    _changed_nodes: set[str] = field(default_factory=set)
    _lost: dict[str, None] = field(default_factory=dict)
    _pods_changed: bool = False
    _watchers: dict[AttemptId, Callable[[AttemptId], None]] = field(default_factory=dict)

    # --- What attempts are ours ------------------------------------------------------------------

    def expect(
        self, attempt_id: AttemptId, members: Iterable[str] = (), *, job_id: JobId | None = None
    ) -> None:
        """The store holds room for this attempt: its pods are no use by others.

        Args:
            attempt_id: the attempt.
            members: `str(pod.ref)` of its pods: no other one counts as its own, whatever its marks
                say. Without them the marks are believed.
            job_id: the job that it runs; without it the marks are believed.
        """
        with self._lock:
            if attempt_id not in self._held:
                held = _Held(dict.fromkeys(members), self.job_namespace, job_id)
                self._held[attempt_id] = held
                self._held_by.update(dict.fromkeys(held.members, attempt_id))
                for key in self._of_attempt.get(attempt_id, ()):
                    if seat := seat_of(self._pods[key]):
                        self._touch(seat)
                        held.nodes.add(seat)

    def release(self, attempt_id: AttemptId) -> None:
        """The store holds nothing for it: pods of it that are still there are strangers'."""
        with self._lock:
            held = self._held.pop(attempt_id, None)
            self._watchers.pop(attempt_id, None)
            for key in held.members if held is not None else ():
                if self._held_by.get(key) == attempt_id:  # else a later one holds it
                    del self._held_by[key]
            # Where others take more than was left, the GPUs it held are theirs now.
            for node in held.nodes if held is not None else ():
                self._touch(node)
        self.told()

    def watch(self, attempt_id: AttemptId, changed: Callable[[AttemptId], None]) -> None:
        """Call `changed` whenever a pod of the attempt changes."""
        with self._lock:
            self._watchers[attempt_id] = changed

    def members(self, attempt_id: AttemptId) -> Members:
        """Its pods that are there. O(pods of it)."""
        with self._lock:
            held = self._held.get(attempt_id, _STRAY)
            marked = self._of_attempt.get(attempt_id, {})
            if own := self._own_pods(attempt_id):
                return _own_members(own, marked)
            keys = {key: None for key in marked if is_released(self._pods[key])}
            others = dict.fromkeys((*(key for key in marked if held.has(key)), *held.members))
            waiting = (self._pods.get(key) for key in others if key not in keys)
            return Members(
                bound=tuple(self._pods[key] for key in keys if held.has(key)),
                unbound=tuple(pod for pod in waiting if pod is not None and pod.waiting),
                total=len(held.members),
            )

    def attempts(self, *, held: bool) -> tuple[AttemptId, ...]:
        """Attempts that some pod names: those that the store holds room for, or the others."""
        with self._lock:
            named = dict.fromkeys((*self._of_attempt, *self._own))
            return tuple(each for each in named if (each in self._held) is held)

    # --- Pods of our own making ------------------------------------------------------------------

    def own(self, attempt_id: AttemptId) -> tuple[Pod, ...]:
        """The pods that we made for this attempt, with or without a node."""
        with self._lock:
            return self._own_pods(attempt_id)

    def own_attempts(self) -> tuple[AttemptId, ...]:
        """Attempts with pods that we made."""
        with self._lock:
            return tuple(self._own)

    def take_own_changed(self) -> tuple[AttemptId, ...]:
        """Of those, the ones with news since the last call."""
        with self._lock:
            changed = tuple(self._own_changed)
            self._own_changed.clear()
            return changed

    def gpu_resource(self, node: str) -> str | None:
        """The resource that the node's GPUs are, "" if it has none; None if there is no node."""
        with self._lock:
            found = self._nodes.get(node)
            return None if found is None else found.gpu_resource

    def _own_pods(self, attempt_id: AttemptId) -> tuple[Pod, ...]:
        held = self._held.get(attempt_id, _STRAY)
        keys = self._own.get(attempt_id, ())
        return tuple(self._pods[key] for key in keys if held.has(key))

    def _own_attempt(self, pod: Pod) -> AttemptId | None:
        """The attempt that we made the pod for; None for pods of others."""
        if not self.job_namespace or pod.ref.namespace != self.job_namespace:
            return None
        return AttemptId(pod.label(labels.ATTEMPT)) or None

    # --- What waits ------------------------------------------------------------------------------

    def pod(self, key: str) -> Pod | None:
        """The pod of `namespace/name/uid`, if it is there."""
        with self._lock:
            return self._pods.get(key)

    def waiting(self) -> tuple[Pod, ...]:
        """Pods whose place is ours to choose and that have none yet."""
        with self._lock:
            return tuple(self._pods[key] for key in self._waiting)

    def pinned(self) -> tuple[Pod, ...]:
        """Pods that were pinned and released, and that kube-scheduler has not bound yet.

        Only members of attempts that the store holds: whoever may write a pod can mark it.
        """
        with self._lock:
            pods = ((key, self._pods[key]) for key in self._pinned)
            return tuple(pod for key, pod in pods if self._holder(key, pod) is not None)

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
        """Of these pods, those that are lost to their gang since this was last asked.

        They were deleted, or have ended, or somebody else has bound them.
        """
        with self._lock:
            lost = tuple(key for key in self._lost if key in among)
            self._lost.clear()
            return lost

    def in_groups(self, groups: Collection[str]) -> tuple[Pod, ...]:
        """Pods of these groups that name us as their scheduler, bound and ended ones too."""
        with self._lock:
            keys = [key for group in sorted(groups) for key in self._of_group.get(group, ())]
            return tuple(self._pods[key] for key in keys)

    def bound_in(self, namespaces: Collection[str]) -> tuple[Pod, ...]:
        """Pods there that were bound for attempts that the store holds. O(pods of ours).

        Not those that are marked with an attempt or a job that is not theirs.
        """
        with self._lock:
            return tuple(
                pod
                for attempt_id, held in (self._held.items() if namespaces else ())
                for key in self._of_attempt.get(attempt_id, ())
                if (pod := self._pods[key]).ref.namespace in namespaces
                and held.has(key)
                and held.job_id in (None, pod.annotation(labels.JOB))
            )

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
        theirs = []
        for key in sorted(self._on_node.get(name, ())):
            pod = self._pods[key]
            if self._holder(key, pod) is None:
                theirs.append(pod)
        return model_node(self._nodes[name], external_of(theirs))

    def _holder(self, key: str, pod: Pod) -> _Held | None:
        """What holds the room that the pod takes; None if that is used by others."""
        attempt_id = attempt_of(pod)
        held = None if attempt_id is None else self._held.get(attempt_id)
        return held if held is not None and held.has(key) else None

    def _touch(self, node: str) -> None:
        if node:
            self._changed_nodes.add(node)

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
            watchers = self._news(key, before, pod)
        self._tell(watchers)

    def pod_gone(self, key: str) -> None:
        """It is no longer there."""
        with self._lock:
            before = self._pods.pop(key, None)
            self._unlink(key, before)
            watchers = self._news(key, before, None)
        self._tell(watchers)

    def _tell(self, watchers: Mapping[AttemptId, Callable[[AttemptId], None]]) -> None:
        for attempt_id, changed in watchers.items():
            changed(attempt_id)
        self.told()

    def _link(self, key: str, pod: Pod) -> None:
        seat = seat_of(pod)
        if seat:
            self._on_node[seat].add(key)
        attempt_id = attempt_of(pod)
        if attempt_id is not None:
            self._of_attempt[attempt_id][key] = None
        if seat and pod.constraints.repulsions:
            self._repelling[key] = None
        own = self._own_attempt(pod)
        if own is not None:
            self._own[own][key] = None
            return
        if not is_ours(pod):
            return
        group = self._group_of[key] = membership(pod).group
        self._of_group[group][key] = None
        if pod.waiting:
            self._waiting[key] = None
        elif seat and not pod.node_name:
            self._pinned[key] = None

    def _unlink(self, key: str, pod: Pod | None) -> None:
        if pod is None:
            return
        for kind in (self._waiting, self._pinned, self._repelling):
            kind.pop(key, None)
        group = self._group_of.pop(key, None)
        if group is not None:
            self._of_group[group].pop(key, None)
            if not self._of_group[group]:
                del self._of_group[group]
        seat = seat_of(pod)
        if seat:
            self._on_node[seat].discard(key)
            if not self._on_node[seat]:
                del self._on_node[seat]
        for attempt_id, pods in (
            (attempt_of(pod), self._of_attempt),
            (self._own_attempt(pod), self._own),
        ):
            if attempt_id is not None:
                pods[attempt_id].pop(key, None)
                if not pods[attempt_id]:
                    del pods[attempt_id]

    def _news(
        self, key: str, before: Pod | None, after: Pod | None
    ) -> dict[AttemptId, Callable[[AttemptId], None]]:
        """Note what a change means; the watchers to tell."""
        watchers = {}
        for pod in (before, after):
            if pod is None:
                continue
            own = self._own_attempt(pod)
            # One that was never seen to be bound may be gone: then it has no marks.
            for attempt_id in (attempt_of(pod), own, self._held_by.get(key)):
                if attempt_id is not None and attempt_id in self._watchers:
                    watchers[attempt_id] = self._watchers[attempt_id]
            held = self._holder(key, pod)
            node = pod.node_name or seat_of(pod)
            if held is None:
                self._touch(node)
            elif node:
                held.nodes.add(node)
            if own is not None:
                self._own_changed[own] = None
            elif is_ours(pod):
                self._pods_changed = True
                if not self._is_available(key):
                    self._lost[key] = None
        return watchers

    def available(self, key: str) -> bool:
        """Whether the pod waits, or is bound for an attempt that the store holds."""
        with self._lock:
            return self._is_available(key)

    def _is_available(self, key: str) -> bool:
        pod = self._pods.get(key)
        if pod is None or pod.deleting or pod.phase.terminal:
            return False
        return (pod.waiting and is_ours(pod)) or self._holder(key, pod) is not None


_STRAY = _Held({})


def _own_members(pods: Sequence[Pod], marked: Collection[str]) -> Members:
    """The pods that we made for an attempt."""
    bound = tuple(pod for pod in pods if str(pod.ref) in marked)
    others = [pod for pod in pods if str(pod.ref) not in marked]
    return Members(
        bound=bound,
        unbound=tuple(pod for pod in others if not pod.over),
        total=max(count_in(pod.annotation(labels.TASKS)) or 1 for pod in pods),
        lost=any(pod.over for pod in others),
    )


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
