from __future__ import annotations

import pytest
from support import kube_objects
from support.kube_objects import Raw, container, sidecar

from scheduler.execution.kubernetes.pods import Exit, Owner, Phase, Pod, PodRef, pod_of
from scheduler.model.quantity import Resources
from scheduler.model.site import PORT_WHOLE


def pod(name: str = "pod-0", **fields: object) -> Pod:
    return pod_of(kube_objects.pod(name, **fields))  # type: ignore[arg-type] # any field of the spec


def test_a_realistic_pod() -> None:
    found = pod_of(kube_objects.training_pod(3))
    assert str(found.ref) == (
        "research-nlp/llama-pretrain-worker-00003/3f2a9c1e-7d4b-4c8a-9e21-000000000003"
    )
    assert found.node_name == "gpu-node-0003"
    assert found.phase is Phase.RUNNING
    assert found.needs == Resources(1, 12_000, 180 * 1024)
    assert found.extras == (("pods", 1), ("rdma/hca", 1))
    assert found.gpu_resource == "nvidia.com/gpu"
    assert (found.scheduler_name, found.priority, found.preempts) == ("haversack", 1000, True)
    assert found.site.node_name == "gpu-node-0003"
    assert ("nvidia.com/gpu.product", "NVIDIA-H100-80GB-HBM3") in found.site.selector
    assert len(found.site.tolerations) == 3
    assert found.owner == Owner(
        "batch/v1", "Job", "llama-pretrain-worker", "uid-llama-pretrain-worker"
    )
    assert found.owner.group == "batch"
    assert found.label("batch.kubernetes.io/job-completion-index") == "3"
    assert found.label("app.kubernetes.io/name") == "llama-pretrain", "budgets select ours by any"
    theirs = kube_objects.training_pod(3)
    theirs["spec"]["schedulerName"] = "default-scheduler"
    assert not pod_of(theirs).label("app.kubernetes.io/name"), "of others only what we read"
    assert found.created_at == 1_793_527_200.0
    assert found.grace_s == 120
    assert found.takes_room
    assert not found.waiting
    assert not found.problems


def test_a_waiting_pod_keeps_all_labels_for_others_anti_affinity() -> None:
    found = pod(labels={"app": "x", "haversack.dev/queue": "nlp"}, annotations={"note": "long"})
    assert found.labels == (("app", "x"), ("haversack.dev/queue", "nlp"))
    assert found.annotations == ()
    assert found.waiting
    assert found.ready
    assert found.site.node_name == ""


def test_pods_of_one_template_share_what_is_equal() -> None:
    one, two = (pod_of(kube_objects.training_pod(number)) for number in (0, 500))
    assert one.constraints is two.constraints
    assert one.extras is two.extras
    assert one.needs is two.needs
    assert one.owner is two.owner
    assert one.node_name is two.node_name


def test_gates_deletion_and_the_end_change_what_a_pod_is() -> None:
    gated = pod(schedulingGates=[{"name": "kueue.x-k8s.io/admission"}])
    assert (gated.waiting, gated.ready) == (True, False)
    assert gated.gates == ("kueue.x-k8s.io/admission",)
    dying = pod(node="n", metadata={"deletionTimestamp": "2026-11-01T10:00:00Z"})
    assert dying.deleting
    assert dying.takes_room, "its GPUs are free when it is gone, not before"
    assert not pod(metadata={"deletionTimestamp": "2026-11-01T10:00:00Z"}).waiting
    assert not pod(node="n", status={"phase": "Succeeded"}).takes_room
    assert not pod(status={"phase": "Failed"}).waiting


@pytest.mark.parametrize(
    ("phase", "expected"),
    [
        ("Running", Phase.RUNNING),
        ("", Phase.PENDING),
        (None, Phase.PENDING),
        ("Odd", Phase.UNKNOWN),
    ],
)
def test_phases(phase: str | None, expected: Phase) -> None:
    assert pod(status={"phase": phase}).phase is expected


def terminated(name: str, code: object, reason: str = "", **more: object) -> Raw:
    ended = {"exitCode": code, "reason": reason, "finishedAt": "2026-11-01T11:00:00Z", **more}
    return {"name": name, "state": {"terminated": ended}}


def test_how_a_pod_ended() -> None:
    found = pod(
        node="n",
        status={
            "phase": "Failed",
            "reason": "Evicted",
            "message": "The node was low on memory",
            "initContainerStatuses": [terminated("fetch", 0, "Completed")],
            "containerStatuses": [
                terminated("main", 137, "OOMKilled", signal=9),
                {"name": "late", "state": {"waiting": {}}},
            ],
        },
    )
    assert found.ending is not None
    assert found.ending.reason == "Evicted"
    assert found.ending.exits == (
        Exit("fetch", 0, 0, "Completed"),
        Exit("main", 137, 9, "OOMKilled"),
    )
    assert found.ending.exit_code == 137
    assert found.ending.finished_at == found.created_at + 3600


def test_an_end_without_containers_has_no_exit_code() -> None:
    found = pod(node="n", status={"phase": "Failed", "reason": "UnexpectedAdmissionError"})
    assert found.ending is not None
    assert found.ending.exit_code is None
    done = pod(status={"phase": "Succeeded", "containerStatuses": [terminated("main", 0)]})
    assert done.ending is not None
    assert done.ending.exit_code == 0
    assert pod(node="n").ending is None


def test_conditions_that_matter() -> None:
    found = pod(
        status={
            "phase": "Pending",
            "conditions": [
                {
                    "type": "PodScheduled",
                    "status": "False",
                    "reason": "Unschedulable",
                    "message": "no room",
                },
                {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"},
            ],
        }
    )
    assert found.scheduled is not None
    assert (found.scheduled.reason, found.scheduled.message) == ("Unschedulable", "no room")
    assert found.disruption == "PreemptionByScheduler"
    calm = pod(status={"conditions": [{"type": "DisruptionTarget", "status": "False"}]})
    assert calm.disruption == ""
    assert calm.scheduled is None


def test_host_ports() -> None:
    ports = [
        {"hostPort": 80},
        {"hostPort": 53, "protocol": "UDP", "hostIP": "10.0.0.1"},
        {"containerPort": 8080},
    ]
    found = pod(
        containers=[container({}, ports=ports)],
        initContainers=[
            sidecar({}, ports=[{"hostPort": 81}]),
            container({}, ports=[{"hostPort": 82}]),
        ],
    )
    assert dict(found.extras) == {
        "pods": 1,
        "port:TCP:80": PORT_WHOLE,
        "port:TCP:81": PORT_WHOLE,
        "port:UDP:53": 1,
        "port:UDP:53:10.0.0.1": 1,
    }
    assert list(found.extras) == sorted(found.extras)


def test_a_pods_own_ports_do_not_collide_with_each_other() -> None:
    ports = [{"hostPort": 80}, {"hostPort": 80, "hostIP": "10.0.0.1"}, {"hostPort": 80}]
    assert dict(pod(containers=[container({}, ports=ports)]).extras)["port:TCP:80"] == PORT_WHOLE


@pytest.mark.parametrize("port", [70_000, -1, "80", True])
def test_a_port_that_is_none_is_a_problem(port: object) -> None:
    found = pod(containers=[container({}, ports=[{"hostPort": port}])])
    assert found.problems == ("spec.containers[0].ports[0].hostPort: no port number",)


def test_claims_and_the_native_group() -> None:
    found = pod(
        volumes=[
            {"name": "data", "persistentVolumeClaim": {"claimName": "shared"}},
            {"name": "scratch", "ephemeral": {"volumeClaimTemplate": {}}},
            {"name": "tmp", "emptyDir": {}},
        ],
        schedulingGroup={"podGroupName": "llama"},
        preemptionPolicy="Never",
    )
    assert found.claims == ("shared", "pod-0-scratch")
    assert found.group == "llama"
    assert not found.preempts


def test_problems_come_from_everywhere() -> None:
    found = pod(
        requests={"cpu": "much"},
        affinity={
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "?"}]}]
                }
            }
        },
    )
    assert len(found.problems) == 2


def test_the_version_does_not_make_a_pod_another() -> None:
    old, new = (pod(metadata={"resourceVersion": version}) for version in ("1", "2"))
    assert old == new
    assert new.version == "2"


def test_refs_are_read_back() -> None:
    ref = PodRef("team", "pod-0", "uid-0")
    assert PodRef.parse(str(ref)) == ref
    for broken in ("", "a/b", "a//c", "a/b/c/d"):
        with pytest.raises(ValueError, match="namespace/name/uid"):
            PodRef.parse(broken)
