"""From pods that wait to gangs that the store can take in."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from scheduler.execution.kubernetes import labels
from scheduler.execution.kubernetes.avoiding import Avoided, off
from scheduler.execution.kubernetes.budgets import critical
from scheduler.execution.kubernetes.cluster import Cluster
from scheduler.execution.kubernetes.follower import Gathered
from scheduler.execution.kubernetes.gangs import Gang, enough_of, gangs_of, owner_keys
from scheduler.execution.kubernetes.lookup import Lookup, Owners
from scheduler.execution.kubernetes.members import membership
from scheduler.execution.kubernetes.pods import Pod
from scheduler.execution.kubernetes.unmodelled import (
    Path,
    Surroundings,
    dra_resources,
    route_of,
)
from scheduler.model.outside import OutsideGang
from scheduler.model.quantity import DEFAULT_QUEUE, QueueName, TenantId


class ClusterGatherer:
    """Groups pods by what their makers say, and refuses those that we cannot judge.

    Args:
        cluster: the picture.
        lookup: reads what pods point at.
        avoided: nodes that kube-scheduler has refused pods on.
    """

    def __init__(self, cluster: Cluster, lookup: Lookup, avoided: Avoided) -> None:
        self._cluster = cluster
        self._lookup = lookup
        self._avoided = avoided

    async def gather(self, fresh: Sequence[Pod], taken: frozenset[str]) -> Gathered:
        """The gangs of these waiting pods. Raises what requests raise.

        Args:
            fresh: pods that wait and are in no gang yet.
            taken: `str(pod.ref)` of those that are in a gang.
        """
        groups = {membership(pod).group for pod in fresh}
        pods = self._cluster.in_groups(groups)
        refusals = await self._refusals(fresh)
        owners = await self._owners(pods)
        found = gangs_of(pods, owners.found, unread=owners.unread, taken=taken, refusals=refusals)
        split = [gang for gang in found.complete if _is_split(gang)]
        waiting = [(pod, each.reason) for each in found.waiting for pod in each.pods]
        waiting += [(pod, _SPLIT) for gang in split for pod in gang.members]
        return Gathered(
            gangs=tuple(
                _outside(gang, self._avoided.nodes(gang.members))
                for gang in found.complete
                if gang not in split
            ),
            waiting=tuple(waiting),
            outgrown=tuple(str(pod.ref) for pod in found.outgrown),
        )

    async def _owners(self, pods: Sequence[Pod]) -> Owners:
        """What made these pods; where they are enough, as it is now and not as it was kept."""
        seen_at = asyncio.get_running_loop().time()
        kept = await self._lookup.owners(owner_keys(pods))
        fresh = await self._lookup.owners(enough_of(pods, kept.found), since=seen_at)
        return Owners(
            found={
                **{key: each for key, each in kept.found.items() if key not in fresh.unread},
                **fresh.found,
            },
            unread={**kept.unread, **fresh.unread},
        )

    async def _refusals(self, fresh: Sequence[Pod]) -> dict[str, str]:
        """Why pods cannot be bound by us, by their keys."""
        claims = await self._lookup.claims(fresh)
        classes = await self._lookup.device_classes() if _ask_for_devices(fresh) else ()
        around = Surroundings(
            claim=lambda namespace, name: claims.get((namespace, name)),
            dra_resources=dra_resources(classes, self._cluster.resources()),
            repelling=self._cluster.repelling(),
        )
        found = {}
        for pod in fresh:
            route = route_of(pod, around)
            if route.path is Path.REFUSED:
                found[str(pod.ref)] = route.why
        return found


def _ask_for_devices(pods: Sequence[Pod]) -> bool:
    """Whether any pod asks for a resource that a device class may stand for."""
    return any(pod.gpu_resource or any("/" in name for name, _ in pod.extras) for pod in pods)


_SPLIT = (
    f"some pods of its gang name {labels.SCHEDULER_NAME} as their scheduler, others are left to"
    f" {labels.KUBE_SCHEDULER_NAME} with our gate; all of a gang must take the same path"
)


def _is_split(gang: Gang) -> bool:
    """Whether its pods take different paths, so that nobody could start them together."""
    return len({pod.scheduler_name for pod in gang.members}) > 1


def _outside(gang: Gang, avoid: Sequence[str]) -> OutsideGang:
    shape = gang.shape
    return OutsideGang(
        key=gang.key,
        name=gang.name,
        tenant=TenantId(gang.namespace),
        queue=QueueName(gang.asked.queue or DEFAULT_QUEUE),
        priority=gang.asked.priority,
        shape=replace(shape, site=off(shape.site, avoid)),
        members=tuple(str(pod.ref) for pod in gang.members),
        preemptible=not any(map(critical, gang.members)),
        submitted_at=gang.created_at,
        evicts=gang.asked.preempts,
        priority_class=_priority_class(gang),
    )


def _priority_class(gang: Gang) -> str:
    """The class that gave the gang its priority, if its pods agree on one."""
    found = {pod.priority_class for pod in gang.members if pod.priority == gang.asked.priority}
    return found.pop() if len(found) == 1 else ""
