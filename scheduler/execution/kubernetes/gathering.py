"""From pods that wait to gangs that the store can take in."""

from __future__ import annotations

from collections.abc import Sequence

from scheduler.execution.kubernetes.cluster import Cluster
from scheduler.execution.kubernetes.follower import Gathered
from scheduler.execution.kubernetes.gangs import Gang, gangs_of, owner_keys
from scheduler.execution.kubernetes.lookup import Lookup
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
    """

    def __init__(self, cluster: Cluster, lookup: Lookup) -> None:
        self._cluster = cluster
        self._lookup = lookup

    async def gather(self, fresh: Sequence[Pod], taken: frozenset[str]) -> Gathered:
        """The gangs of these waiting pods. Raises what requests raise.

        Args:
            fresh: pods that wait and are in no gang yet.
            taken: `str(pod.ref)` of those that are in a gang.
        """
        groups = {membership(pod).group for pod in fresh}
        pods = self._cluster.in_groups(groups)
        refusals = await self._refusals(fresh)
        owners = await self._lookup.owners(owner_keys(pods))
        found = gangs_of(
            pods, owners.found, unread=owners.unread, taken=taken, refusals=refusals
        )
        return Gathered(
            gangs=tuple(map(_outside, found.complete)),
            waiting=tuple((pod, each.reason) for each in found.waiting for pod in each.pods),
            outgrown=tuple(str(pod.ref) for pod in found.outgrown),
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
            if route.path is not Path.DIRECT:
                found[str(pod.ref)] = route.why
        return found


def _ask_for_devices(pods: Sequence[Pod]) -> bool:
    """Whether any pod asks for a resource that a device class may stand for."""
    return any(pod.gpu_resource or any("/" in name for name, _ in pod.extras) for pod in pods)


def _outside(gang: Gang) -> OutsideGang:
    return OutsideGang(
        key=gang.key,
        name=gang.name,
        tenant=TenantId(gang.namespace),
        queue=QueueName(gang.asked.queue or DEFAULT_QUEUE),
        priority=gang.asked.priority,
        shape=gang.shape,
        members=tuple(str(pod.ref) for pod in gang.members),
        preemptible=True,
        submitted_at=gang.created_at,
    )
