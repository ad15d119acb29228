"""Gangs that somebody else made and that wait outside for a place, as pods in a cluster do."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from scheduler.model.job import JobShape
from scheduler.model.node import Node
from scheduler.model.quantity import JobId, NodeId, QueueName, TenantId, UtcSeconds


@dataclass(frozen=True, slots=True)
class OutsideGang:
    """One gang, complete, ready to be placed.

    Attributes:
        key: unique among all gangs there ever were; made of its members' identities.
        name: what people call it.
        shape: what it needs.
        members: what waits to become task 0, 1, ...: `namespace/name/uid` of each pod.
        preemptible: whether it may be stopped for others.
        submitted_at: when its first member was made.
        evicts: whether others may be stopped for it.
        priority_class: what gave it its priority, "" if nothing with a name did.
    """

    key: str
    name: str
    tenant: TenantId
    queue: QueueName
    priority: int
    shape: JobShape
    members: tuple[str, ...]
    preemptible: bool
    submitted_at: UtcSeconds
    evicts: bool = True
    priority_class: str = ""


@dataclass(frozen=True, slots=True)
class OutsideJob:
    """A gang that the store knows and that has not ended.

    Attributes:
        waiting: it has no live attempt.
    """

    job_id: JobId
    members: tuple[str, ...]
    waiting: bool


class OutsideStore(Protocol):
    """What following an outside cluster needs of the store. Each call is one transaction.

    All raise FencedError when another leader has taken over, and StorageError when the store does
    not answer; nothing was kept then.
    """

    async def node_ids(self) -> Mapping[str, NodeId]:
        """The nodes that are there, by name: who begins to look finds out which left meanwhile."""
        ...

    async def sync_nodes(
        self, changed: Sequence[Node], gone: Sequence[NodeId], now: UtcSeconds
    ) -> int:
        """Write nodes that changed, and those that are no longer there; how many differed."""
        ...

    async def adopt(self, gangs: Sequence[OutsideGang], now: UtcSeconds) -> Mapping[str, JobId]:
        """Put gangs into the queue as jobs of origin `kubernetes`; the job of each key.

        Idempotent: a key that is known makes no second job (I15). One that was withdrawn before
        anything of it was started is not known any more.
        """
        ...

    async def withdraw(self, keys: Sequence[str], why: str, now: UtcSeconds) -> None:
        """Their members are gone: a waiting one ends CANCELLED, a live one must not run again."""
        ...

    async def open_gangs(self) -> Mapping[str, OutsideJob]:
        """Every gang that has not ended, by key."""
        ...


class ShieldStore(Protocol):
    """Where decisions look for who must not be stopped."""

    async def shield(self, job_ids: Collection[JobId], now: UtcSeconds) -> None:
        """These must not be stopped for others, for now; all other gangs may. One transaction.

        Raises:
            FencedError: another leader has taken over.
            StorageError: the store does not answer; nothing was kept.
        """
        ...
