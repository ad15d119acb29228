"""Which types the fake serves, and how a request path names one of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from support.kubernetes.refusals import no_such_resource

_GROUPLESS = ""


@dataclass(frozen=True, slots=True)
class Resource:
    """One type.

    Attributes:
        group: API group; empty is the core group.
        version: API version.
        plural: name in the path.
        kind: name in the object.
        namespaced: its objects live in namespaces.
        status: `status` is a subresource: the main path does not write it, and it alone does.
        custom: of a CustomResourceDefinition; such objects carry their kind also in lists.
        unguarded_update: a PUT without a resourceVersion is taken.
        created_by_update: a PUT of an object that is not there creates it.
    """

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True
    status: bool = False
    custom: bool = False
    unguarded_update: bool = False
    created_by_update: bool = False

    @property
    def api_version(self) -> str:
        """As `apiVersion` says it."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def qualified(self) -> str:
        """As messages say it: `leases.coordination.k8s.io`."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def shelf(self) -> tuple[str, str]:
        """Where its objects lie: all versions of a type share them."""
        return self.group, self.plural

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """The request path of the type, of an object of it or of a part of that."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        scope = f"/namespaces/{namespace}" if self.namespaced and namespace else ""
        tail = "".join(f"/{part}" for part in (name, subresource) if part)
        return f"{root}{scope}/{self.plural}{tail}"


PODS = Resource("", "v1", "pods", "Pod", status=True, unguarded_update=True)
NODES = Resource("", "v1", "nodes", "Node", namespaced=False, status=True, unguarded_update=True)
NAMESPACES = Resource(
    "", "v1", "namespaces", "Namespace", namespaced=False, status=True, unguarded_update=True
)
LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease", created_by_update=True)
EVENTS = Resource("events.k8s.io", "v1", "events", "Event", unguarded_update=True)
BUDGETS = Resource("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget", status=True)
PRIORITY_CLASSES = Resource(
    "scheduling.k8s.io",
    "v1",
    "priorityclasses",
    "PriorityClass",
    namespaced=False,
    unguarded_update=True,
)
DEFINITIONS = Resource(
    "apiextensions.k8s.io",
    "v1",
    "customresourcedefinitions",
    "CustomResourceDefinition",
    namespaced=False,
    status=True,
)
POLICIES = Resource(
    "admissionregistration.k8s.io",
    "v1",
    "validatingadmissionpolicies",
    "ValidatingAdmissionPolicy",
    namespaced=False,
    status=True,
)
POLICY_BINDINGS = Resource(
    "admissionregistration.k8s.io",
    "v1",
    "validatingadmissionpolicybindings",
    "ValidatingAdmissionPolicyBinding",
    namespaced=False,
)

SELF_REVIEWS = Resource(
    "authentication.k8s.io", "v1", "selfsubjectreviews", "SelfSubjectReview", namespaced=False
)
ACCESS_REVIEWS = Resource(
    "authorization.k8s.io",
    "v1",
    "selfsubjectaccessreviews",
    "SelfSubjectAccessReview",
    namespaced=False,
)

BUILTIN = (
    PODS,
    NODES,
    NAMESPACES,
    LEASES,
    EVENTS,
    BUDGETS,
    PRIORITY_CLASSES,
    DEFINITIONS,
    POLICIES,
    POLICY_BINDINGS,
    SELF_REVIEWS,
    ACCESS_REVIEWS,
    Resource("", "v1", "events", "Event", unguarded_update=True),
    Resource("", "v1", "services", "Service", status=True, unguarded_update=True),
    Resource("", "v1", "configmaps", "ConfigMap", unguarded_update=True),
    Resource("", "v1", "secrets", "Secret", unguarded_update=True),
    Resource("", "v1", "serviceaccounts", "ServiceAccount"),
    Resource("", "v1", "replicationcontrollers", "ReplicationController", status=True),
    Resource("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim", status=True),
    Resource("", "v1", "persistentvolumes", "PersistentVolume", namespaced=False, status=True),
    Resource("batch", "v1", "jobs", "Job", status=True),
    Resource("apps", "v1", "replicasets", "ReplicaSet", status=True),
    Resource("apps", "v1", "statefulsets", "StatefulSet", status=True),
    Resource("storage.k8s.io", "v1", "storageclasses", "StorageClass", namespaced=False),
    Resource("storage.k8s.io", "v1", "csinodes", "CSINode", namespaced=False),
    Resource("storage.k8s.io", "v1", "csidrivers", "CSIDriver", namespaced=False),
    Resource("resource.k8s.io", "v1", "resourceclaims", "ResourceClaim", status=True),
    Resource("resource.k8s.io", "v1", "resourceslices", "ResourceSlice", namespaced=False),
    Resource("resource.k8s.io", "v1", "deviceclasses", "DeviceClass", namespaced=False),
)
"""What a plain server has."""

THIRD_PARTY = (
    Resource("scheduling.k8s.io", "v1alpha2", "podgroups", "PodGroup", status=True),
    Resource("scheduling.k8s.io", "v1alpha2", "workloads", "Workload"),
    Resource("scheduling.x-k8s.io", "v1alpha1", "podgroups", "PodGroup", status=True, custom=True),
    Resource("scheduling.volcano.sh", "v1beta1", "podgroups", "PodGroup", status=True, custom=True),
    Resource("jobset.x-k8s.io", "v1alpha2", "jobsets", "JobSet", status=True, custom=True),
    Resource("kubeflow.org", "v1", "pytorchjobs", "PyTorchJob", status=True, custom=True),
    Resource("trainer.kubeflow.org", "v1alpha1", "trainjobs", "TrainJob", status=True, custom=True),
    Resource("ray.io", "v1", "rayjobs", "RayJob", status=True, custom=True),
)
"""What operators and feature gates add, as far as Haversack reads it."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a request is about.

    Attributes:
        resource: the type.
        namespace: empty for all of them, and for types without.
        name: empty for the whole collection.
        subresource: `status`, `binding`, `eviction` or empty.
    """

    resource: Resource
    namespace: str = ""
    name: str = ""
    subresource: str = ""


class Registry:
    """The types served now."""

    def __init__(self, resources: Iterable[Resource]) -> None:
        self._by_path: dict[tuple[str, str, str], Resource] = {}
        for resource in resources:
            self.add(resource)

    def add(self, resource: Resource) -> None:
        """Serve one more type."""
        self._by_path[resource.group, resource.version, resource.plural] = resource

    def remove(self, group: str, plural: str) -> None:
        """Serve a type no longer."""
        for key in [key for key in self._by_path if (key[0], key[2]) == (group, plural)]:
            del self._by_path[key]

    def of_kind(self, api_version: str, kind: str) -> Resource:
        """The type of an object that says what it is.

        Raises:
            RefusedError: no such type is served.
        """
        for resource in self._by_path.values():
            if (resource.api_version, resource.kind) == (api_version, kind):
                return resource
        raise no_such_resource()

    def group_version(self, group: str, version: str) -> tuple[Resource, ...]:
        """All types of one group version, by name."""
        found = [
            resource
            for (its_group, its_version, _), resource in self._by_path.items()
            if (its_group, its_version) == (group, version)
        ]
        return tuple(sorted(found, key=lambda resource: resource.plural))

    def groups(self) -> dict[str, tuple[str, ...]]:
        """Versions of each named group."""
        found: dict[str, set[str]] = {}
        for group, version, _ in self._by_path:
            if group != _GROUPLESS:
                found.setdefault(group, set()).add(version)
        return {group: tuple(sorted(versions)) for group, versions in sorted(found.items())}

    def target(self, path: str) -> Target:
        """What a path names.

        Raises:
            RefusedError: 404, nothing that is served.
        """
        parts = [part for part in path.split("/") if part]
        match parts:
            case ["api", version, *rest]:
                group = _GROUPLESS
            case ["apis", group, version, *rest]:
                pass
            case _:
                raise no_such_resource()
        namespace = ""
        # `namespaces/x` and `namespaces/x/status` name the namespace itself.
        about_itself = len(rest) == 3 and rest[2] in ("status", "finalize")
        if rest[:1] == ["namespaces"] and len(rest) > 2 and not about_itself:
            namespace, rest = rest[1], rest[2:]
        if not rest or len(rest) > 3:
            raise no_such_resource()
        plural, name, subresource = (*rest, "", "")[:3]
        resource = self._by_path.get((group, version, plural))
        if resource is None or bool(namespace) > resource.namespaced:
            raise no_such_resource()
        return Target(resource, namespace, name, subresource)
