"""Reads and writes of objects by the API server's rules; no HTTP and no waiting in here."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from support.kubernetes import pod_rules
from support.kubernetes.admission import fence, pin_fence, spent_budget
from support.kubernetes.patches import patched
from support.kubernetes.refusals import (
    Json,
    RefusedError,
    already_exists,
    bad_request,
    conflict,
    expired,
    invalid,
    no_such_resource,
    not_found,
    success,
    too_new,
)
from support.kubernetes.resources import (
    BUDGETS,
    DEFINITIONS,
    NAMESPACES,
    NODES,
    PODS,
    PRIORITY_CLASSES,
    Registry,
    Resource,
    Target,
)
from support.kubernetes.selectors import Selection
from support.kubernetes.storage import Key, Storage
from support.kubernetes.validation import check, check_name

_OWNED_METADATA = (
    "name",
    "namespace",
    "generateName",
    "uid",
    "creationTimestamp",
    "generation",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
)
_SUFFIX_LETTERS = "bcdfghjklmnpqrstvwxz2456789"
_SUFFIX_LENGTH = 5


@dataclass(frozen=True, slots=True)
class Page:
    """What is left of a list that is read in pages."""

    version: int
    rest: tuple[Json, ...]


class Operations:
    """The verbs.

    Args:
        registry: the types served.
        storage: where the objects are.
        now: wall time, UTC seconds.
    """

    def __init__(self, registry: Registry, storage: Storage, now: Callable[[], float]) -> None:
        self._registry = registry
        self._storage = storage
        self._now = now
        self._numbers = itertools.count(1)
        self._pages: dict[str, Page] = {}

    def compact(self) -> None:
        """Forget history, and lists that are half read."""
        self._storage.compact()
        self._pages.clear()

    def get(self, target: Target) -> Json:
        """One object.

        Raises:
            RefusedError: 404.
        """
        found = self._storage.shelf(target.resource.shelf).objects.get(_key(target))
        if found is None:
            raise not_found(target.resource.qualified, target.name)
        return _shown(target.resource, found)

    def list(
        self, resource: Resource, selection: Selection, query: dict[str, str], *, stale_by: int = 0
    ) -> Json:
        """A list, or a page of one; `stale_by` so many versions, as far as history goes back.

        Raises:
            RefusedError: 410, a page of a list that is forgotten; 422, 504.
        """
        if query.get("sendInitialEvents"):
            why = "Forbidden: sendInitialEvents is forbidden for list"
            raise invalid("ListOptions", "", "sendInitialEvents", why, group="meta.k8s.io")
        version = query.get("resourceVersion", "")
        if version.isdigit() and int(version) > self._storage.version:
            raise too_new(int(version), self._storage.version)
        token = query.get("continue", "")
        if token:
            page = self._pages.get(token)
            if page is None:
                raise expired(
                    "The provided continue parameter is too old to display a consistent list "
                    "result."
                )
        else:
            if query.get("resourceVersionMatch") == "Exact":
                self._check_exact(resource, int(version))
            shelf = self._storage.shelf(resource.shelf)
            at = max(self._storage.version - stale_by, shelf.floor)
            page = Page(at, tuple(shelf.listed(selection, at)))
        limit = int(query.get("limit") or 0)
        if version == "0" or not limit:
            limit = len(page.rest)
        return self._page(resource, page, limit, counted=not selection.tests)

    def _check_exact(self, resource: Resource, version: int) -> None:
        if version != self._storage.version:
            self._storage.shelf(resource.shelf).since(version)
            raise bad_request("the fake lists no past versions")

    def _page(self, resource: Resource, page: Page, limit: int, *, counted: bool) -> Json:
        items, rest = page.rest[:limit], page.rest[limit:]
        metadata: Json = {"resourceVersion": str(page.version)}
        if rest:
            token = f"page-{next(self._numbers)}"
            self._pages[token] = Page(page.version, rest)
            metadata["continue"] = token
            if counted:
                metadata["remainingItemCount"] = len(rest)
        if not resource.custom:
            items = tuple(
                {key: value for key, value in item.items() if key not in ("kind", "apiVersion")}
                for item in items
            )
        return {
            "kind": f"{resource.kind}List",
            "apiVersion": resource.api_version,
            "metadata": metadata,
            "items": list(items),
        }

    def create(self, target: Target, document: Json, *, dry: bool = False) -> Json:
        """A new object, as stored.

        Raises:
            RefusedError: it is not valid, exists already, or has no namespace to be in.
        """
        resource, metadata = target.resource, dict(document.get("metadata") or {})
        if metadata.get("resourceVersion"):
            raise RefusedError(
                500, "", "resourceVersion should not be set on objects to be created"
            )
        if resource.namespaced:
            self._check_namespace(target, metadata)
        if not metadata.get("name") and metadata.get("generateName"):
            metadata["name"] = metadata["generateName"] + self._suffix()
        name = metadata.get("name", "")
        check_name(resource, name)
        key = (target.namespace, name)
        if key in self._storage.shelf(resource.shelf).objects:
            raise already_exists(resource.qualified, name)
        number = next(self._numbers)
        metadata |= {
            "uid": str(UUID(int=(number << 64) | 0x4000_8000_0000_0000_0000)),
            "generation": 1,
            "creationTimestamp": self._stamp(0),
        }
        if resource.namespaced:
            metadata["namespace"] = target.namespace
        stored = self._made(resource, {**document, "metadata": metadata})
        stored |= {"apiVersion": resource.api_version, "kind": resource.kind}
        check(resource, stored)
        return _shown(resource, self._put(resource, key, stored, dry=dry))

    def _check_namespace(self, target: Target, metadata: Json) -> None:
        if metadata.get("namespace", target.namespace) != target.namespace:
            raise bad_request(
                "the namespace of the provided object does not match the namespace sent on the "
                "request"
            )
        if ("", target.namespace) not in self._storage.shelf(NAMESPACES.shelf).objects:
            raise not_found("namespaces", target.namespace)

    def _made(self, resource: Resource, document: Json) -> Json:
        """What the type's own rules make of a new object."""
        if resource == PODS:
            classes = self._storage.shelf(PRIORITY_CLASSES.shelf).objects.values()
            return pod_rules.created(document, classes, self._stamp(0))
        if resource == NAMESPACES:
            labels = document["metadata"].get("labels") or {}
            labels = {**labels, "kubernetes.io/metadata.name": document["metadata"]["name"]}
            metadata = {**document["metadata"], "labels": labels}
            return {**document, "metadata": metadata, "status": {"phase": "Active"}}
        if resource == DEFINITIONS:
            self._serve(document["spec"])
            established = {"type": "Established", "status": "True"}
            return {**document, "status": {"conditions": [established]}}
        # Kubelets and their like create nodes with a status.
        if resource.status and resource != NODES:
            return {key: value for key, value in document.items() if key != "status"}
        return document

    def _serve(self, spec: Json) -> None:
        for version in spec["versions"]:
            self._registry.add(
                Resource(
                    spec["group"],
                    version["name"],
                    spec["names"]["plural"],
                    spec["names"]["kind"],
                    namespaced=spec["scope"] == "Namespaced",
                    status="status" in (version.get("subresources") or {}),
                    custom=True,
                )
            )

    def update(
        self, target: Target, document: Json, *, by: str = "", dry: bool = False
    ) -> tuple[int, Json]:
        """PUT of an object or its status: HTTP status and the stored form.

        Raises:
            RefusedError: not there, changed meanwhile, or not valid.
        """
        resource, metadata = target.resource, document.get("metadata") or {}
        if metadata.get("name") != target.name:
            raise bad_request(
                f"the name of the object ({metadata.get('name', '')}) does not match the name on "
                f"the URL ({target.name})"
            )
        old = self._storage.shelf(resource.shelf).objects.get(_key(target))
        version = metadata.get("resourceVersion")
        if old is None:
            if resource.created_by_update and not version:
                return 201, self.create(target, document, dry=dry)
            raise not_found(resource.qualified, target.name)
        if not version and not resource.unguarded_update:
            raise _unguarded(resource, target.name)
        if version and version != old["metadata"]["resourceVersion"]:
            raise conflict(resource.qualified, target.name)
        if metadata.get("uid", old["metadata"]["uid"]) != old["metadata"]["uid"]:
            why = (
                f"Precondition failed: UID in precondition: {metadata['uid']}, UID in object "
                f"meta: {old['metadata']['uid']}"
            )
            raise conflict(resource.qualified, target.name, why)
        return 200, self._replace(target, old, document, by=by, dry=dry)

    def patch(
        self, target: Target, content_type: str, patch: Any, *, by: str = "", dry: bool = False
    ) -> Json:
        """PATCH of an object or its status, as stored.

        Raises:
            RefusedError: not there, changed meanwhile, or not valid.
        """
        resource = target.resource
        old = self.get(target)
        new = patched(content_type, old, patch, custom=resource.custom)
        metadata = new.get("metadata") or {}
        if metadata.get("resourceVersion") != old["metadata"]["resourceVersion"]:
            raise conflict(resource.qualified, target.name)
        if metadata.get("uid") != old["metadata"]["uid"]:
            why = f'Invalid value: "{metadata.get("uid", "")}": field is immutable'
            raise invalid(resource.kind, target.name, "metadata.uid", why, group=resource.group)
        return self._replace(target, old, new, by=by, dry=dry)

    def _replace(self, target: Target, old: Json, sent: Json, *, by: str, dry: bool) -> Json:
        resource = target.resource
        owned = {key: old["metadata"][key] for key in _OWNED_METADATA if key in old["metadata"]}
        free = {
            key: value
            for key, value in (sent.get("metadata") or {}).items()
            if key not in _OWNED_METADATA and value not in (None, [], {})
        }
        metadata = {**free, **owned, "resourceVersion": old["metadata"]["resourceVersion"]}
        fixed = {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata}
        if target.subresource == "status":
            new = {**old, **fixed, "status": sent.get("status") or {}}
        else:
            new = {**sent, **fixed}
            if resource.status:
                new.pop("status", None)
                new |= {"status": old["status"]} if "status" in old else {}
        if resource == PODS:
            if not target.subresource:
                pin_fence(self._storage, by, old, new)
            new = pod_rules.updated(old, new)
        check(resource, new)
        if new == old:
            return _shown(resource, old)
        if new.get("spec") != old.get("spec") and "generation" in metadata:
            new["metadata"] = {**metadata, "generation": metadata["generation"] + 1}
        key = _key(target)
        done = "deletionTimestamp" in metadata and not metadata.get("deletionGracePeriodSeconds")
        if done and not metadata.get("finalizers") and not dry:
            # The event of the removal shows the object as it was stored, finalizers and all.
            self._storage.remove(resource.shelf, key)
            return _shown(resource, new)
        return _shown(resource, self._put(resource, key, new, dry=dry))

    def delete(self, target: Target, options: Json, *, dry: bool = False) -> Json:
        """Delete: the object on its way out, or a Status when it is gone at once.

        Raises:
            RefusedError: 404; 409, a precondition does not hold.
        """
        resource, key = target.resource, _key(target)
        found = self.get(target)
        _check_preconditions(resource, found, options.get("preconditions") or {})
        metadata = found["metadata"]
        if resource == PODS:
            leaving = pod_rules.graceful(found, options.get("gracePeriodSeconds"), self._stamp)
            if leaving is None:
                return found
            found = self._put(resource, key, leaving, dry=dry)
            waits = leaving["metadata"]["deletionGracePeriodSeconds"] > 0
        else:
            waits = False
            if metadata.get("finalizers") and "deletionTimestamp" not in metadata:
                marks = {"deletionTimestamp": self._stamp(0), "deletionGracePeriodSeconds": 0}
                leaving = {**found, "metadata": {**metadata, **marks}}
                found = self._put(resource, key, leaving, dry=dry)
        if waits or metadata.get("finalizers"):
            return _shown(resource, found)
        if not dry:
            found = self._storage.remove(resource.shelf, key)
            if resource == DEFINITIONS:
                self._registry.remove(found["spec"]["group"], found["spec"]["names"]["plural"])
        if resource == PODS:
            return _shown(resource, found)
        group = {"group": resource.group} if resource.group else {}
        kind = {"kind": resource.plural, "uid": metadata["uid"]}
        return success(200, {"name": target.name, **group, **kind})

    def delete_collection(self, resource: Resource, selection: Selection, options: Json) -> Json:
        """Delete all that a selection takes; the list of them."""
        found = self._storage.shelf(resource.shelf).listed(selection)
        for item in found:
            metadata = item["metadata"]
            target = Target(resource, metadata.get("namespace", ""), metadata["name"])
            self.delete(target, options)
        return self._page(
            resource, Page(self._storage.version, tuple(found)), len(found), counted=True
        )

    def bind(self, target: Target, binding: Json, username: str, *, dry: bool = False) -> Json:
        """Post a Binding.

        Raises:
            RefusedError: 409, 404, 422 by the fence, 400 or 500 for a malformed one.
        """
        pod_rules.checked_binding(target.name, binding)
        fence(self._storage, username, target.name, binding)
        pod = self.get(Target(PODS, target.namespace, target.name))
        node = self._storage.shelf(NODES.shelf).objects.get(("", binding["target"]["name"]))
        after = pod_rules.bound(pod, binding, node, self._stamp(0))
        self._put(PODS, _key(target), after, dry=dry)
        return success(201)

    def evict(self, target: Target, eviction: Json, *, dry: bool = False) -> Json:
        """Post an Eviction: a deletion that a disruption budget may refuse.

        Raises:
            RefusedError: 404, 409, 429.
        """
        if (eviction.get("metadata") or {}).get("name") != target.name:
            raise bad_request("name in URL does not match name in Eviction object")
        whole = Target(PODS, target.namespace, target.name)
        pod = self.get(whole)
        options = eviction.get("deleteOptions") or {}
        _check_preconditions(PODS, pod, options.get("preconditions") or {})
        spent = spent_budget(self._storage, pod)
        if spent is not None:
            self._put(BUDGETS, spent[0], spent[1], dry=dry)
        marked = pod_rules.evicted(pod, self._stamp(0))
        if marked != pod:
            self._put(PODS, _key(target), marked, dry=dry)
        # The mark was a write of its own: the version that the client knew is past.
        preconditions = {**(options.get("preconditions") or {}), "resourceVersion": None}
        self.delete(whole, {**options, "preconditions": preconditions}, dry=dry)
        return success(201)

    def subresource(
        self, target: Target, document: Json, username: str, *, dry: bool = False
    ) -> Json:
        """POST to a part of an object.

        Raises:
            RefusedError: 404, there is no such part; else what that part refuses.
        """
        if target.resource == PODS and target.subresource == "binding":
            return self.bind(target, document, username, dry=dry)
        if target.resource == PODS and target.subresource == "eviction":
            return self.evict(target, document, dry=dry)
        raise no_such_resource()

    def _put(self, resource: Resource, key: Key, document: Json, *, dry: bool) -> Json:
        return document if dry else self._storage.put(resource.shelf, key, document)

    def _stamp(self, ahead_s: int) -> str:
        moment = datetime.fromtimestamp(int(self._now()) + ahead_s, UTC)
        return moment.strftime("%Y-%m-%dT%H:%M:%SZ")

    def _suffix(self) -> str:
        number = next(self._numbers) * 7919
        letters = []
        for _ in range(_SUFFIX_LENGTH):
            number, place = divmod(number, len(_SUFFIX_LETTERS))
            letters.append(_SUFFIX_LETTERS[place])
        return "".join(letters)


def _key(target: Target) -> Key:
    return target.namespace, target.name


def _shown(resource: Resource, found: Json) -> Json:
    """The object in the version that was asked for: all versions of a type share one shelf."""
    if found.get("apiVersion") == resource.api_version:
        return found
    return {**found, "apiVersion": resource.api_version}


def _unguarded(resource: Resource, name: str) -> RefusedError:
    """The server names the plural here, where it names the kind elsewhere."""
    why = "Invalid value: 0: must be specified for an update"
    return invalid(resource.qualified, name, "metadata.resourceVersion", why)


def _check_preconditions(resource: Resource, found: Json, wanted: Json) -> None:
    metadata = found["metadata"]
    for field, shown, after in (
        ("uid", "UID", "The object might have been deleted and then recreated"),
        ("resourceVersion", "ResourceVersion", "The object might have been modified"),
    ):
        if wanted.get(field) not in (None, metadata[field]):
            why = (
                f"the {shown} in the precondition ({wanted[field]}) does not match the {shown} in "
                f"record ({metadata[field]}). {after}"
            )
            raise conflict(resource.kind, metadata["name"], why)
