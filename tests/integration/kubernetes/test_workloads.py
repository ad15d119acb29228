"""Workloads as people have them are gangs as soon as they name us; nothing else need be said.

The daemon runs as the service account of deploy/kubernetes/base, with its rights and no others, on
a real API server that serves the kinds; the test plays their controllers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sized
from typing import Any

import pytest
from support.daemon import DaemonProcess
from support.kubernetes import objects
from support.kubernetes.applying import BASE, apply, rendered
from support.kubernetes.client import MERGE, Client, Json
from support.kubernetes.deployment import Deployment, deployed
from support.kubernetes.ground import Ground
from support.kubernetes.real_server import (
    SERVICE_ACCOUNT,
    ControlPlane,
    NoControlPlaneError,
    control_plane,
)
from support.kubernetes.resources import PODS, PRIORITY_CLASSES, Resource
from support.kubernetes.workloads import (
    CUSTOM,
    JOB_SETS,
    JOBS,
    NATIVE_GROUPS,
    Workload,
    coscheduled,
    definition,
    indexed_job,
    job_pods,
    job_set,
    leader_worker_set,
    natively_grouped,
    pytorch_job,
    ray_job,
    volcano_job,
)

pytestmark = pytest.mark.cluster

_GATES = "GenericWorkload=true,GangScheduling=true,WorkloadAwarePreemption=true"
_SIZE = 8
_EARLY = 3


@pytest.fixture(scope="module")
def own_plane() -> Iterator[ControlPlane]:
    """A control plane with native PodGroups, our installation, and the others' kinds."""
    options = [f"--feature-gates={_GATES}", "--runtime-config=scheduling.k8s.io/v1alpha2=true"]
    try:
        with control_plane(options=options) as running:
            for document in rendered(BASE):
                apply(running, document)
            for resource in CUSTOM:
                apply(running, definition(resource))
            yield running
    except NoControlPlaneError as error:
        pytest.skip(f"tests against a real API server do not run: {error}")


@pytest.fixture(scope="module")
def daemon(
    own_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DaemonProcess]:
    running = DaemonProcess(
        tmp_path_factory.mktemp("daemon") / "data",
        settings={"KUBERNETES__KUBECONFIG": str(own_plane.kubeconfig(SERVICE_ACCOUNT))},
        arguments=("--executor", "kubernetes"),
    )
    running.start()
    yield running
    assert running.stop() == 0
    assert "Traceback" not in running.log_file.read_text()


@pytest.fixture
def on_cluster(own_plane: ControlPlane, daemon: DaemonProcess) -> Iterator[Deployment]:
    ground = Ground(own_plane.access, own_plane.access_as, own_plane.compact, real=True)
    deployment = deployed(ground, daemon)
    yield deployment
    deployment.clear()


def _template(kind: str = "") -> Json:
    """What a user writes into a pod template: our name as the scheduler, and one GPU."""
    selector = {"kind": kind} if kind else {}
    spec: Json = objects.pod("x", gpus=1, nodeSelector=selector)["spec"]
    return spec


def _workloads() -> dict[str, Workload]:
    """Each of eight pods, on nodes of its own."""
    return {
        "indexed": indexed_job("indexed", _template("indexed"), _SIZE),
        "jobset": job_set("jobset", _template("jobset"), jobs=2, pods=4),
        "pytorch": pytorch_job("pytorch", _template("pytorch"), workers=7),
        "ray": ray_job("ray", _template("ray"), workers=7),
        "volcano": volcano_job("volcano", _template("volcano"), workers=7),
        "lws": leader_worker_set("lws", _template("lws"), _SIZE),
        "coscheduled": coscheduled("coscheduled", _template("coscheduled"), _SIZE),
        "native": natively_grouped("native", _template("native"), _SIZE),
    }


def _store(on_cluster: Deployment, resource: Resource, document: Json) -> Json:
    path = resource.path(on_cluster.namespace)
    return on_cluster.ask("POST", path, document).ok()


def _pods_of(on_cluster: Deployment, workload: Workload) -> list[Json]:
    return workload.pods(lambda resource, document: _store(on_cluster, resource, document))


def _told(on_cluster: Deployment, prefix: str) -> set[str]:
    """What the PodScheduled conditions of these pods say; "" of one that says nothing."""
    said = set()
    for name, pod in on_cluster.pods().items():
        if name.startswith(prefix):
            conditions = pod["status"].get("conditions", ())
            found = [c.get("message", "") for c in conditions if c["type"] == "PodScheduled"]
            said.add(found[0] if found else "")
    return said


def _marks(on_cluster: Deployment, prefix: str, name: str) -> set[str]:
    """The values of one of our annotations on these pods; "" of one without it."""
    return {
        pod["metadata"].get("annotations", {}).get(f"haversack.dev/{name}", "")
        for pod_name, pod in on_cluster.pods().items()
        if pod_name.startswith(prefix)
    }


def _bound(on_cluster: Deployment) -> set[str]:
    return {name for name, node in on_cluster.nodes_of("").items() if node}


def _until_none(on_cluster: Deployment, offending: Callable[[], Sized], why: str) -> None:
    """Wait until nothing is left that offends; what did last is told."""
    last: list[Sized] = []

    def settled() -> bool:
        last[:] = [offending()]
        return not len(last[0])

    try:
        on_cluster.until(settled, why)
    except AssertionError as error:
        raise AssertionError(f"{why}: {last}") from error


def test_unmodified_workloads_are_bound_whole_or_not_at_all(on_cluster: Deployment) -> None:
    """Eight kinds at once: pods still missing, then room for half of them, then for all."""
    workloads = _workloads()
    pods = {kind: _pods_of(on_cluster, each) for kind, each in workloads.items()}
    for kind in workloads:
        on_cluster.node(f"{kind}-a", gpus=4, labels={"kind": kind})
        on_cluster.create(pods[kind][:_EARLY])

    def told_otherwise(message: str) -> dict[str, set[str]]:
        told = {kind: _told(on_cluster, kind) for kind in workloads}
        return {kind: said for kind, said in told.items() if any(message not in t for t in said)}

    _until_none(
        on_cluster,
        lambda: told_otherwise("waiting for 3 of 8 pods"),
        "incomplete gangs were not told what they wait for",
    )
    assert _bound(on_cluster) == set()
    for kind in workloads:
        on_cluster.create(pods[kind][_EARLY:])
    _until_none(
        on_cluster,
        lambda: told_otherwise("the gang asks 8 tasks x 1 gpus = 8"),
        "whole gangs were not told that there is no room",
    )
    assert _bound(on_cluster) == set()
    for kind in workloads:
        on_cluster.node(f"{kind}-b", gpus=4, labels={"kind": kind})
    _until_none(
        on_cluster,
        lambda: [kind for kind in workloads if not on_cluster.all_bound(kind, _SIZE)],
        "gangs were not bound",
    )
    for kind in workloads:
        (attempt,) = _marks(on_cluster, kind, "attempt")
        assert attempt, kind
        assert _marks(on_cluster, kind, "tasks") == {"8"}, kind
    jobs = on_cluster.jobs()
    assert len(jobs) == len(workloads)


def test_ranks_follow_the_indexes_of_the_controllers(on_cluster: Deployment) -> None:
    on_cluster.node("a", gpus=16)
    expected = []
    for workload in (
        job_set("ordered", _template(), jobs=2, pods=2),
        pytorch_job("trained", _template(), workers=3),
    ):
        pods = _pods_of(on_cluster, workload)
        expected.append([pod["metadata"]["name"] for pod in pods])
        on_cluster.create(pods[::-1])
    on_cluster.until(lambda: on_cluster.all_bound("", 8), "the gangs were not bound")
    for names in expected:
        ranks = {name: on_cluster.pods()[name]["metadata"]["annotations"] for name in names}
        assert [ranks[name]["haversack.dev/rank"] for name in names] == ["0", "1", "2", "3"]


def test_pods_that_take_work_as_it_comes_start_alone(on_cluster: Deployment) -> None:
    """A plain Job, and an Indexed one that runs its indexes in turns, are no gangs."""
    on_cluster.node("a", gpus=3)
    plain = indexed_job("plain", _template(), 2, completionMode="NonIndexed", completions=6)
    turns = indexed_job("turns", _template(), 2, completions=6)
    for workload in (plain, turns):
        on_cluster.create(_pods_of(on_cluster, workload))
    on_cluster.until(
        lambda: sum(map(bool, on_cluster.nodes_of("").values())) == 3, "room was left empty"
    )


def test_an_elastic_job_that_grows_in_line_starts_with_all_of_its_pods(
    on_cluster: Deployment,
) -> None:
    """Its completions are changed together with its parallelism, as Kubernetes allows."""
    on_cluster.node("a", gpus=1)
    pods = _pods_of(on_cluster, indexed_job("elastic", _template(), 2))
    on_cluster.create(pods)
    on_cluster.until(
        lambda: all("asks 2 tasks" in t for t in _told(on_cluster, "elastic")), "no reason"
    )
    on_cluster.create(job_pods(_scaled(on_cluster, "elastic", 4))[2:])
    on_cluster.until(
        lambda: [j["state"] for j in on_cluster.jobs()].count("CANCELLED") == 1,
        "the gang of two was not taken out of the line",
    )
    on_cluster.node("b", gpus=2)
    on_cluster.until(
        lambda: [j["state"] for j in on_cluster.jobs()].count("PENDING") == 1, "no gang of four"
    )
    assert set(on_cluster.nodes_of("elastic").values()) == {""}
    on_cluster.node("c", gpus=2)
    on_cluster.until(lambda: on_cluster.all_bound("elastic", 4), "the larger gang was not bound")
    assert _marks(on_cluster, "elastic", "tasks") == {"4"}
    more = job_pods(_scaled(on_cluster, "elastic", 6))[4:]
    on_cluster.create(more[:1])
    on_cluster.until(
        lambda: "waiting for 5 of 6 pods" in _told(on_cluster, "elastic"), "it did not wait"
    )
    on_cluster.create(more[1:])
    on_cluster.node("d", gpus=1)
    on_cluster.until(lambda: on_cluster.all_bound("elastic", 6), "what it grew by was not bound")


def _scaled(on_cluster: Deployment, name: str, size: int) -> Json:
    path = JOBS.path(on_cluster.namespace, name)
    spec = {"parallelism": size, "completions": size}
    return on_cluster.ask("PATCH", path, {"spec": spec}, kind=MERGE).ok()


def test_what_replaces_a_failed_pod_does_not_wait_for_those_that_are_done(
    on_cluster: Deployment,
) -> None:
    on_cluster.node("a", gpus=3)
    pods = _pods_of(on_cluster, indexed_job("failing", _template(), 3))
    on_cluster.create(pods)
    on_cluster.until(lambda: on_cluster.all_bound("failing", 3), "the gang was not bound")
    names = [pod["metadata"]["name"] for pod in pods]
    for name in names[:2]:
        on_cluster.end(name, "Succeeded", 0)
    on_cluster.end(names[2], "Failed", 1)
    again = {**pods[2], "metadata": {**pods[2]["metadata"], "name": "failing-2-again"}}
    on_cluster.create([again])
    on_cluster.until(lambda: on_cluster.all_bound("failing-2-again", 1), "it waits for ever")


def test_without_the_right_to_read_an_owner_its_pods_say_the_size(
    own_plane: ControlPlane, on_cluster: Deployment
) -> None:
    on_cluster.node("a", gpus=_SIZE)
    role = next(each for each in rendered(BASE) if _reads_owners(each))
    less = [rule for rule in role["rules"] if JOB_SETS.group not in rule["apiGroups"]]
    apply(own_plane, {**role, "rules": less})
    try:
        on_cluster.until(lambda: _denied(own_plane, on_cluster), "the right was not taken away")
        pods = _pods_of(on_cluster, job_set("unread", _template(), jobs=2, pods=4))
        on_cluster.create(pods[:7])
        on_cluster.until(
            lambda: all(
                "lacks the right `get` on jobsets in API group jobset.x-k8s.io" in told
                and "no annotation haversack.dev/gang-size" in told
                for told in _told(on_cluster, "unread")
            ),
            "the missing right was not named",
        )
        for pod in pods:
            _say_size(on_cluster, pod)
        on_cluster.until(
            lambda: _told(on_cluster, "unread") == {"waiting for 7 of 8 pods"},
            "the annotation did not help",
        )
        assert set(on_cluster.nodes_of("unread").values()) == {""}
        on_cluster.create(pods[7:])
        on_cluster.until(lambda: on_cluster.all_bound("unread", _SIZE), "the gang was not bound")
        assert _marks(on_cluster, "unread", "tasks") == {"8"}
    finally:
        apply(own_plane, role)


def _reads_owners(document: Json) -> bool:
    return any(JOB_SETS.group in rule["apiGroups"] for rule in document.get("rules", ()))


def _denied(plane: ControlPlane, on_cluster: Deployment) -> bool:
    async def asking() -> int:
        async with Client(plane.access_as(SERVICE_ACCOUNT)) as client:
            return (await client.get(JOB_SETS.path(on_cluster.namespace, "any"))).status

    return asyncio.run(asking()) == 403


def _say_size(on_cluster: Deployment, pod: Json) -> None:
    """On the pod, whether it is there already or not."""
    metadata: dict[str, Any] = pod["metadata"]
    said = {"haversack.dev/gang-size": str(_SIZE)}
    metadata["annotations"] = {**metadata.get("annotations", {}), **said}
    if metadata["name"] in on_cluster.pods():
        path = PODS.path(on_cluster.namespace, metadata["name"])
        on_cluster.ask("PATCH", path, {"metadata": {"annotations": said}}, kind=MERGE).ok()


def test_a_native_group_waits_for_its_object_and_takes_its_priority(
    on_cluster: Deployment,
) -> None:
    on_cluster.node("a", gpus=2)
    urgent = objects.priority_class(on_cluster.namespace, 70)
    on_cluster.ask("POST", PRIORITY_CLASSES.path(), urgent).ok()
    workload = natively_grouped("grouped", _template(), 2, priorityClassName=on_cluster.namespace)
    pods = workload.expand(lambda _, document: document, {})
    on_cluster.create(pods)
    on_cluster.until(
        lambda: all(
            "podgroup.scheduling.k8s.io" in told and "does not exist" in told
            for told in _told(on_cluster, "grouped")
        ),
        "it was not told which object is missing",
    )
    assert set(on_cluster.nodes_of("grouped").values()) == {""}
    _store(on_cluster, NATIVE_GROUPS, workload.document)
    on_cluster.until(lambda: on_cluster.all_bound("grouped", 2), "the gang was not bound")
    (job,) = on_cluster.jobs()
    assert job["priority"] == 70
