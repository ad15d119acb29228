"""Reads single objects that pods point at: who made them, their volume claims.

They are few and change rarely, so they are read when a pod needs them, and kept for some seconds;
which version of an API the server has is asked once a minute.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from scheduler.execution.kubernetes.owners import Owner, OwnerKey, owner_of
from scheduler.execution.kubernetes.pods import Pod
from scheduler.execution.kubernetes.raw import Json, mapping, mappings, text
from scheduler.execution.kubernetes.server import ApiServer, Document, RejectedError
from scheduler.execution.kubernetes.unmodelled import Claim, claim_of, counted_drivers

K = TypeVar("K")
V = TypeVar("V")

_OBJECT_S = 5.0
_VERSIONS_S = 60.0
_KEPT_MAX = 20_000
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
"""What a name may be (a DNS subdomain); users write others where they point at objects, and those
must not lead to another path."""
_NO_DRIVERS: frozenset[str] = frozenset()


@dataclass(slots=True)
class _Kept(Generic[K, V]):
    """Answers that hold for some seconds."""

    for_s: float
    _found: dict[K, tuple[float, V]] = field(default_factory=dict)

    def get(self, key: K, since: float = 0.0) -> tuple[V] | None:
        """The answer, if there is a fresh one, and none from before `since` (loop time)."""
        found = self._found.get(key)
        oldest = max(since, asyncio.get_running_loop().time() - self.for_s)
        return None if found is None or found[0] < oldest else (found[1],)

    def put(self, key: K, value: V) -> V:
        """Keep an answer."""
        if len(self._found) >= _KEPT_MAX:
            self._found.clear()
        self._found[key] = (asyncio.get_running_loop().time(), value)
        return value


@dataclass(frozen=True, slots=True)
class Owners:
    """What the objects say that made pods.

    Attributes:
        found: those that could be read.
        unread: why not, for the others: what is missing, and what would help.
    """

    found: Mapping[OwnerKey, Owner]
    unread: Mapping[OwnerKey, str]


class Lookup:
    """Reads objects by name. Methods raise what requests raise, but for objects we may not see.

    Args:
        server: the cluster.
    """

    def __init__(self, server: ApiServer) -> None:
        self._server = server
        self._objects: _Kept[str, Document | None] = _Kept(_OBJECT_S)
        self._owners: _Kept[str, Owner | str] = _Kept(_OBJECT_S)
        self._places: _Kept[tuple[str, str], str | None] = _Kept(_VERSIONS_S)
        self._finding_places = asyncio.Lock()

    async def owners(self, keys: Iterable[OwnerKey], *, since: float = 0.0) -> Owners:
        """What these objects say. One request for each that is not kept, and two for a new kind.

        Args:
            keys: which.
            since: no answer from before this instant of the loop's clock will do.
        """
        wanted = sorted(set(keys))
        read = await asyncio.gather(*(self._owner(key, since) for key in wanted))
        told = dict(zip(wanted, read, strict=True))
        return Owners(
            found={key: each for key, each in told.items() if isinstance(each, Owner)},
            unread={key: each for key, each in told.items() if isinstance(each, str)},
        )

    async def _owner(self, key: OwnerKey, since: float) -> Owner | str:
        """What the object says, or why it cannot be read."""
        async with self._finding_places:  # one asks, however many pods want to know
            place = await self._place(key.group, key.kind)
        if place is None:
            return f"{key.said} cannot be read: the cluster has no {key.resource}"
        path, plural = place.rsplit("/", 1)
        if not _NAME.fullmatch(key.name):
            return f"{key.said} does not exist: nothing can have that name"
        url = f"{path}/namespaces/{key.namespace}/{plural}/{key.name}"
        kept = self._owners.get(url, since)
        return kept[0] if kept is not None else self._owners.put(url, await self._read(key, url))

    async def _read(self, key: OwnerKey, url: str) -> Owner | str:
        try:
            found = owner_of(await self._server.get(url))
        except RejectedError as error:
            if error.missing:
                return f"{key.said} does not exist"
            if error.forbidden:
                plural = url.rsplit("/", 2)[1]
                return (
                    f"{key.said} cannot be read: our account lacks the right `get` on {plural} in"
                    f" API group {key.group}; grant it with a ClusterRole"
                )
            raise
        return found if found is not None else f"{key.said} groups no pods"

    async def _place(self, group: str, kind: str) -> str | None:
        """Where objects of a kind are: `/apis/batch/v1/jobs`; None if the server has no such.

        The preferred version comes first, but not every kind is in it: PodGroups of
        scheduling.k8s.io are only in versions older, or younger, than that of PriorityClasses.
        """
        kept = self._places.get((group, kind))
        if kept is not None:
            return kept[0]
        about = await self._readable(f"/apis/{group}") or {}
        best = text(mapping(about.get("preferredVersion")).get("groupVersion"))
        others = (text(each.get("groupVersion")) for _, each in mappings(about.get("versions")))
        for version in dict.fromkeys(filter(None, (best, *others))):
            resources = await self._readable(f"/apis/{version}") or {}
            for _, each in mappings(resources.get("resources")):
                name = text(each.get("name"))
                if each.get("kind") == kind and "/" not in name:
                    return self._places.put((group, kind), f"/apis/{version}/{name}")
        return self._places.put((group, kind), None)

    async def claims(self, pods: Iterable[Pod]) -> dict[tuple[str, str], Claim]:
        """The volume claims that these pods mount; those that cannot be read are left out."""
        wanted = sorted({(pod.ref.namespace, name) for pod in pods for name in pod.claims})
        if not wanted:
            return {}
        drivers = await self._counted_drivers()
        found = await asyncio.gather(*(self._claim(*each, drivers) for each in wanted))
        return {each: claim for each, claim in zip(wanted, found, strict=True) if claim is not None}

    async def _claim(self, namespace: str, name: str, counted: frozenset[str]) -> Claim | None:
        claim = await self._named(f"/api/v1/namespaces/{namespace}/persistentvolumeclaims", name)
        if claim is None:
            return None
        spec = mapping(claim.get("spec"))
        volume_name, class_name = text(spec.get("volumeName")), text(spec.get("storageClassName"))
        volume = storage_class = None
        if volume_name:
            volume = await self._named("/api/v1/persistentvolumes", volume_name)
        if class_name:
            storage_class = await self._named("/apis/storage.k8s.io/v1/storageclasses", class_name)
        return claim_of(claim, volume, storage_class, counted)

    async def _counted_drivers(self) -> frozenset[str]:
        nodes = await self._object("/apis/storage.k8s.io/v1/csinodes")
        if nodes is None:
            return _NO_DRIVERS
        return counted_drivers(each for _, each in mappings(nodes.get("items")))

    async def device_classes(self) -> tuple[Json, ...]:
        """All DeviceClasses; none where the server has or shows none."""
        found = await self._object("/apis/resource.k8s.io/v1/deviceclasses")
        return () if found is None else tuple(each for _, each in mappings(found.get("items")))

    async def _named(self, path: str, name: str) -> Document | None:
        """The object of this name; none if nothing can have that name."""
        return await self._object(f"{path}/{name}") if _NAME.fullmatch(name) else None

    async def _object(self, path: str) -> Document | None:
        kept = self._objects.get(path)
        return kept[0] if kept is not None else self._objects.put(path, await self._readable(path))

    async def _readable(self, path: str) -> Document | None:
        """What is at `path`; None if there is nothing, or our rights do not cover it."""
        try:
            return await self._server.get(path)
        except RejectedError as error:
            if error.missing or error.forbidden:
                return None
            raise
