"""What the fake says that it serves: versions, groups, resources."""

from __future__ import annotations

from support.kubernetes.refusals import Json, no_such_resource
from support.kubernetes.resources import Registry

_VERSION = {"major": "1", "minor": "36", "gitVersion": "v1.36.2-fake"}


def discovered(registry: Registry, path: str) -> Json | None:
    """The answer to a discovery path; None for any other.

    Raises:
        RefusedError: 404, a group or version that is not served.
    """
    match [part for part in path.split("/") if part]:
        case ["version"]:
            return _VERSION
        case ["api"]:
            return {"kind": "APIVersions", "versions": ["v1"]}
        case ["apis"]:
            groups = registry.groups()
            return {
                "kind": "APIGroupList",
                "apiVersion": "v1",
                "groups": [_group(group, versions) for group, versions in groups.items()],
            }
        case ["apis", group]:
            versions = registry.groups().get(group)
            if versions is None:
                raise no_such_resource()
            return {**_group(group, versions), "kind": "APIGroup", "apiVersion": "v1"}
        case ["api", version]:
            return _resource_list(registry, "", version)
        case ["apis", group, version]:
            return _resource_list(registry, group, version)
        case _:
            return None


def _resource_list(registry: Registry, group: str, version: str) -> Json:
    found = registry.group_version(group, version)
    if not found:
        raise no_such_resource()
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": found[0].api_version,
        "resources": [
            {"name": one.plural, "kind": one.kind, "namespaced": one.namespaced} for one in found
        ],
    }


def _group(group: str, versions: tuple[str, ...]) -> Json:
    shown = [{"groupVersion": f"{group}/{version}", "version": version} for version in versions]
    return {"name": group, "versions": shown, "preferredVersion": shown[0]}
