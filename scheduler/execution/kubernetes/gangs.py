"""From pods to gangs: who belongs together, whether all are there, and what each of them needs.

A gang is complete when as many of its pods are ready as must start together. Until then it waits,
and says why. Pods that are gated by somebody else, are being deleted or have ended do not count.

Of a group whose pods are all made by one object, pods that have succeeded keep their place: what
such an object makes anew is to replace pods that failed.

How many pods that are: the object that made them says so where its kind is known and can be read
(see `owners`); else their annotation `haversack.dev/gang-size`; else the gang waits with that
reason. Pods beyond that number, and replacements of a gang that already runs, are placed one by
one once the gang has its place.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from scheduler.execution.kubernetes import labels
from scheduler.execution.kubernetes.levels import ALL_LEVELS, Levels
from scheduler.execution.kubernetes.members import Membership, membership, place
from scheduler.execution.kubernetes.owners import SIZE_MAX, Owner, OwnerKey
from scheduler.execution.kubernetes.pods import Pod
from scheduler.execution.kubernetes.raw import count_in
from scheduler.execution.kubernetes.tasks import Asked, DisagreementError, asked_by
from scheduler.model.job import JobShape
from scheduler.model.quantity import UtcSeconds

_NO_REFUSALS: Final[Mapping[str, str]] = MappingProxyType({})
_NONE_UNREAD: Final[Mapping[OwnerKey, str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Gang:
    """Pods that start together or not at all, all of them ready.

    Attributes:
        group: which group they are; the same after a restart of it.
        key: made of the pods' identities, so that no two gangs ever share it.
        members: in rank order; task i of the job is member i.
        placed: pods of the group that already have a node.
        asked: what each task needs, and what the gang is.
    """

    group: str
    key: str
    namespace: str
    name: str
    members: tuple[Pod, ...]
    placed: int
    asked: Asked

    @property
    def shape(self) -> JobShape:
        """What the allocator needs to know of it."""
        return JobShape(
            tasks=len(self.members),
            per_task=self.asked.needs,
            topology=self.asked.topology,
            site=self.asked.site,
            extras=self.asked.extras,
        )

    @property
    def created_at(self) -> UtcSeconds:
        """When its first pod was made."""
        return min(pod.created_at for pod in self.members)


@dataclass(frozen=True, slots=True)
class Waiting:
    """Pods that cannot be placed yet, and why."""

    group: str
    namespace: str
    name: str
    pods: tuple[Pod, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Gangs:
    """All pods that want a node.

    Attributes:
        complete: the oldest first; of one group in rank order.
        waiting: by group.
        outgrown: pods of gangs that were complete when they were found and wait for a place still,
            though more must start with them now.
    """

    complete: tuple[Gang, ...]
    waiting: tuple[Waiting, ...]
    outgrown: tuple[Pod, ...] = ()


def gangs_of(
    pods: Iterable[Pod],
    owners: Mapping[OwnerKey, Owner],
    *,
    unread: Mapping[OwnerKey, str] = _NONE_UNREAD,
    taken: Collection[str] = frozenset(),
    levels: Levels = ALL_LEVELS,
    refusals: Mapping[str, str] = _NO_REFUSALS,
    queue_labels: Sequence[str] = (labels.QUEUE,),
) -> Gangs:
    """Group the pods that are ours.

    O(pods); a caller that knows which groups changed may pass the pods of those alone.

    Args:
        pods: waiting and placed ones. Of a group with a waiting pod all must be here, or it looks
            incomplete; see `members.membership` for which group a pod is in.
        owners: what the objects say that could be read, see `owner_keys`.
        unread: why the others could not be read.
        taken: `str(pod.ref)` of pods that already are in a gang found earlier. What was found
            stays as it was, unless its object has grown meanwhile.
        levels: which labels a PodGroup's topology may be about.
        refusals: why a pod is not placed, by `str(pod.ref)`; its gang waits with that reason.
        queue_labels: labels that name the queue, the first that is set counts. Those of other
            schedulers are honoured only when somebody lists them here.
    """
    groups: dict[str, tuple[Membership, list[Pod]]] = {}
    for pod in pods:
        found = membership(pod)
        if pod.deleting or (pod.phase.terminal and not (found.once and pod.done)):
            continue
        owner = owners.get(found.owner) if found.owner else None
        group = f"{found.group}/{found.role}" if owner and owner.roles else found.group
        groups.setdefault(group, (found, []))[1].append(pod)
    complete: list[Gang] = []
    waiting: list[Waiting] = []
    outgrown: list[Pod] = []
    for group, (found, members) in sorted(groups.items()):
        owner, why = _said(found.owner, owners, unread)
        forming = _Forming(group, found, members, owner, why, levels, refusals, queue_labels)
        formed = forming.gangs(taken)
        complete += formed.complete
        waiting += formed.waiting
        outgrown += formed.outgrown
    complete.sort(key=lambda gang: (gang.created_at, gang.group))  # stable
    return Gangs(tuple(complete), tuple(waiting), tuple(outgrown))


def _said(
    key: OwnerKey | None, owners: Mapping[OwnerKey, Owner], unread: Mapping[OwnerKey, str]
) -> tuple[Owner | None, str]:
    """What the object says, or why nobody knows."""
    if key is None:
        return None, ""
    return owners.get(key), unread.get(key, f"{key.said} does not exist or cannot be read")


def owner_keys(pods: Iterable[Pod]) -> frozenset[OwnerKey]:
    """The objects that say how large these pods' gangs are."""
    found = (membership(pod).owner for pod in pods if pod.waiting)
    return frozenset(key for key in found if key)


def enough_of(pods: Iterable[Pod], owners: Mapping[OwnerKey, Owner]) -> frozenset[OwnerKey]:
    """The objects of which as many pods are there as must start together.

    What follows from such a size must not come from an old answer: the object may have grown, and
    the newest of its pods with it. O(pods).
    """
    counted = Counter(membership(pod).owner for pod in pods if not pod.deleting)
    return frozenset(
        key
        for key, owner in owners.items()
        if counted[key] >= min([owner.size, *dict(owner.roles).values()])
    )


@dataclass(frozen=True, slots=True)
class _Forming:
    """One group while it is looked at.

    Attributes:
        owner: what its object says, if it has one that could be read.
        unread: why it could not.
    """

    group: str
    found: Membership
    pods: Sequence[Pod]
    owner: Owner | None
    unread: str
    levels: Levels
    refusals: Mapping[str, str]
    queue_labels: Sequence[str]

    def gangs(self, taken: Collection[str]) -> Gangs:
        wanting = [pod for pod in self.pods if pod.waiting and str(pod.ref) not in taken]
        if not wanting:
            return Gangs((), ())
        wanting.sort(key=place)
        size, trouble = self._size()
        if trouble:
            return Gangs((), (self._waits(wanting, trouble),))
        in_line = [pod for pod in self.pods if pod.waiting and str(pod.ref) in taken]
        placed = len(self.pods) - len(wanting) - len(in_line)
        if size == 1 or placed >= size:
            return self._one_by_one(wanting, placed + len(in_line))
        if not in_line:
            return self._together(wanting, size, placed)
        if placed + len(in_line) >= size:
            return Gangs((), (self._follow(wanting, size),))
        reason = f"its gang is formed anew: {size} pods must start together now"
        return Gangs((), (self._waits(wanting, reason),), tuple(in_line))

    def _together(self, wanting: Sequence[Pod], size: int, placed: int) -> Gangs:
        refused = next(
            (f"pod {pod.ref.name}: {self._fault(pod)}" for pod in wanting if self._fault(pod)), ""
        )
        if refused:
            return Gangs((), (self._waits(wanting, refused),))
        ready = [pod for pod in wanting if pod.ready]
        if placed + len(ready) < size:
            reason = _still_missing(size, placed, ready, wanting)
            return Gangs((), (self._waits(wanting, reason),))
        first = ready[: size - placed]
        found = self._gang(first, placed)
        chosen = {pod.ref for pod in first}
        beyond = [pod for pod in wanting if pod.ref not in chosen]
        return Gangs(
            found.complete, (*found.waiting, *([self._follow(beyond, size)] if beyond else []))
        )

    def _follow(self, beyond: Sequence[Pod], size: int) -> Waiting:
        reason = f"its gang needs {size} pods; the others follow once those are placed"
        return self._waits(beyond, reason)

    def _one_by_one(self, wanting: Sequence[Pod], placed: int) -> Gangs:
        """Pods that need not start together, or no longer: each for itself."""
        done: list[Gang] = []
        left: list[Waiting] = []
        for pod in wanting:
            reason = self._fault(pod) or ("" if pod.ready else _gates([pod]))
            if reason:
                left.append(self._waits([pod], reason))
                continue
            found = self._gang([pod], placed)
            done += found.complete
            left += found.waiting
        return Gangs(tuple(done), tuple(left))

    def _fault(self, pod: Pod) -> str:
        return self.refusals.get(str(pod.ref)) or next(iter(pod.problems), "")

    def _gang(self, members: Sequence[Pod], placed: int) -> Gangs:
        try:
            asked = asked_by(members, self.owner, self.levels, self.queue_labels)
        except DisagreementError as reason:
            return Gangs((), (self._waits(members, str(reason)),))
        identity = hashlib.blake2b(digest_size=12)
        for uid in sorted(pod.ref.uid for pod in members):
            identity.update(uid.encode(errors="surrogatepass") + b"\0")
        gang = Gang(
            group=self.group,
            key=f"{self.group}#{identity.hexdigest()}",
            namespace=members[0].ref.namespace,
            name=self.found.name,
            members=tuple(members),
            placed=placed,
            asked=asked,
        )
        return Gangs((gang,), ())

    def _size(self) -> tuple[int, str]:
        """How many must start together, or why that cannot be told."""
        if self.found.alone:
            lonely = self.pods[0].annotation(labels.GANG_SIZE)
            return (1, "") if not lonely else (0, _no_gang())
        if self.owner is not None:
            if self.owner.problem:
                return 0, self.owner.problem
            return dict(self.owner.roles).get(self.found.role, self.owner.size), ""
        written = {size for pod in self.pods for size in _sizes(pod)}
        if len(written) > 1:
            return 0, f"its pods name different sizes of their gang: {', '.join(sorted(written))}"
        if not written:
            return 0, self._unsized()
        size = count_in(next(iter(written)))
        if size is None or size > SIZE_MAX:
            return 0, f"annotation {labels.GANG_SIZE} is no number from 1 to {SIZE_MAX}"
        return size, ""

    def _unsized(self) -> str:
        if self.found.owner is None:
            return f"its pods have no annotation {labels.GANG_SIZE}"
        return (
            f"{self.unread}, and its pods have no annotation {labels.GANG_SIZE}: the size of the"
            " gang is unknown"
        )

    def _waits(self, pods: Sequence[Pod], reason: str) -> Waiting:
        namespace = pods[0].ref.namespace
        return Waiting(self.group, namespace, self.found.name, tuple(pods), reason)


def _sizes(pod: Pod) -> tuple[str, ...]:
    """What the pod itself says of its gang's size; our word goes before those of others."""
    for key in (labels.GANG_SIZE, labels.VOLCANO_MIN_MEMBER, labels.LWS_SIZE):
        if written := pod.annotation(key):
            return (written,)
    return ()


def _no_gang() -> str:
    return (
        f"it has annotation {labels.GANG_SIZE}, but nothing says which pods are its gang;"
        f" give all of them the label {labels.GANG}"
    )


def _still_missing(size: int, placed: int, ready: Sequence[Pod], wanting: Sequence[Pod]) -> str:
    reason = f"waiting for {placed + len(ready)} of {size} pods"
    gated = [pod for pod in wanting if not pod.ready]
    return f"{reason} ({len(gated)} more: {_gates(gated)})" if gated else reason


def _gates(gated: Sequence[Pod]) -> str:
    names = sorted({gate for pod in gated for gate in pod.held_by})
    return f"held by the scheduling gate {', '.join(names)}"
