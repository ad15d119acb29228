from __future__ import annotations

import re
from typing import Any

import pytest
from support.execution import launch_order

from scheduler.errors import InvalidRequestError
from scheduler.execution.kubernetes.manifests import (
    host_name,
    master_port,
    pod_manifest,
    pod_name,
    service_manifest,
)
from scheduler.execution.kubernetes.runtime import PodRuntime
from scheduler.jobspec import parse_job_yaml
from scheduler.model.execution import LaunchOrder
from scheduler.model.job import LauncherKind
from scheduler.model.site import Effect as TaintEffect
from scheduler.model.site import Taint

OWNER = {"metadata": {"name": "test-a-0", "uid": "u-0"}}


def manifest(order: LaunchOrder, index: int = 0, **change: Any) -> dict[str, Any]:
    given = {"image": "registry.example/train:1", "gpu_resource": "nvidia.com/gpu"} | change
    return pod_manifest(order, order.tasks[index], "jobs", **given)


def environment(pod: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["value"] for each in pod["spec"]["containers"][0]["env"]}


def test_a_pod_says_everything_that_its_task_needs() -> None:
    order = launch_order(
        "python",
        "train.py",
        tasks=2,
        gpus=[["g0", "g1"], ["g2", "g3"]],
        cpu_milli=4000,
        memory_mib=2048,
        grace_s=12.5,
        max_runtime_s=90.2,
        workdir="/work",
        env={"LR": "0.1"},
        job_name="llama.v2",
    )
    pod = manifest(order, 1, owner=OWNER)
    metadata, spec = pod["metadata"], pod["spec"]
    assert metadata["name"] == f"llama-v2-{order.attempt_id}-1"
    assert metadata["labels"]["haversack.dev/attempt"] == order.attempt_id
    assert metadata["labels"]["haversack.dev/tenant"] == "default"
    assert metadata["annotations"] == {"haversack.dev/tasks": "2"}
    assert metadata["finalizers"] == ["haversack.dev/exit-status"]
    assert metadata["ownerReferences"] == [
        {"apiVersion": "v1", "kind": "Pod", "name": "test-a-0", "uid": "u-0"}
    ]
    assert (spec["schedulerName"], spec["restartPolicy"]) == ("haversack", "Never")
    assert "nodeName" not in spec
    assert (spec["terminationGracePeriodSeconds"], spec["activeDeadlineSeconds"]) == (13, 91)
    assert f"{spec['hostname']}.{spec['subdomain']}" == host_name(order, 1)
    assert {each["key"] for each in spec["tolerations"]} >= {"haversack.dev/only", "nvidia.com/gpu"}
    (container,) = spec["containers"]
    assert container["command"] == ["python", "train.py"]
    assert container["workingDir"] == "/work"
    assert container["resources"] == {
        "requests": {"cpu": "4000m", "memory": "2048Mi", "nvidia.com/gpu": "2"},
        "limits": {"memory": "2048Mi", "nvidia.com/gpu": "2"},
    }
    assert container["volumeMounts"] == [{"name": "shm", "mountPath": "/dev/shm"}]
    assert spec["volumes"] == [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
    assert environment(pod)["LR"] == "0.1"


def test_the_same_order_makes_the_same_objects() -> None:
    order = launch_order(tasks=2)
    assert manifest(order) == manifest(launch_order(tasks=2))
    assert service_manifest(order, "jobs", OWNER) == service_manifest(order, "jobs", OWNER)


def test_the_service_names_pods_before_they_are_ready() -> None:
    order = launch_order(tasks=2)
    service = service_manifest(order, "jobs", OWNER)
    assert service["metadata"]["name"] == order.attempt_id
    assert service["spec"] == {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": {"haversack.dev/attempt": order.attempt_id},
    }


def test_the_torch_contract_in_pods() -> None:
    order = launch_order("train", tasks=2, gpus=[["a"], ["b"]], launcher=LauncherKind.TORCH)
    env = environment(manifest(order, 1))
    assert env["MASTER_ADDR"] == env["PET_MASTER_ADDR"] == f"task-0.{order.attempt_id}"
    assert env["MASTER_PORT"] == env["PET_MASTER_PORT"] == str(master_port(order))
    assert (env["RANK"], env["WORLD_SIZE"], env["LOCAL_RANK"]) == ("1", "2", "0")
    assert (env["PET_NNODES"], env["PET_NODE_RANK"], env["PET_NPROC_PER_NODE"]) == ("2", "1", "1")
    assert env["HAVERSACK_TASK_INDEX"] == "1"
    assert "CUDA_VISIBLE_DEVICES" not in env


def test_several_processes_of_a_task_are_left_to_torchrun() -> None:
    order = launch_order(
        "python", "train.py", gpus=[["a", "b"]], processes=2, launcher=LauncherKind.TORCH
    )
    pod = manifest(order)
    assert pod["spec"]["containers"][0]["command"] == ["torchrun", "python", "train.py"]
    env = environment(pod)
    assert (env["PET_NPROC_PER_NODE"], env["PET_NO_PYTHON"]) == ("2", "1")


def test_a_task_without_gpus_sees_none_and_tolerates_no_taint_of_theirs() -> None:
    pod = manifest(launch_order("true"), gpu_resource="")
    assert environment(pod)["NVIDIA_VISIBLE_DEVICES"] == "void"
    assert [each["key"] for each in pod["spec"]["tolerations"]] == ["haversack.dev/only"]
    assert "nvidia.com/gpu" not in pod["spec"]["containers"][0]["resources"]["requests"]


def test_kubernetes_fills_nothing_in() -> None:
    order = launch_order("sh", "-c", "echo $(HOME) $$ $X", env={"A": "$(B)"})
    pod = manifest(order)
    assert pod["spec"]["containers"][0]["command"][2] == "echo $$(HOME) $$$$ $$X"
    assert environment(pod)["A"] == "$$(B)"


@pytest.mark.parametrize("name", ["a", "a" * 63, "a.-b", "x" * 37 + "..y", "9.9"])
def test_names_are_names_of_kubernetes(name: str) -> None:
    order = launch_order(job_name=name)
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", pod_name(order, 4095))


def spec_of(task: str, more: str = "") -> Any:
    return parse_job_yaml(
        "apiVersion: haversack.dev/v1alpha1\nkind: Job\nmetadata: {name: x}\n"
        f"spec: {{task: {{command: [a]{task}}}{more}}}\n"
    )[0]


def test_a_fitted_job_is_one_of_its_nodes_pods_and_may_use_ours() -> None:
    fitted = PodRuntime("img").fitted(spec_of(", gpus: 1"))
    assert fitted.shape.extras == (("pods", 1),)
    taints = [Taint(key, "x", TaintEffect.NO_SCHEDULE) for key in ("haversack.dev/only", "other")]
    covered = [any(t.covers(taint) for t in fitted.task.site.tolerations) for taint in taints]
    assert covered == [True, False]


def test_a_job_without_an_image_needs_a_default() -> None:
    assert PodRuntime("img").fitted(spec_of("")).task.image is None
    assert PodRuntime("").fitted(spec_of(", image: img")).task.image == "img"
    with pytest.raises(InvalidRequestError) as caught:
        PodRuntime("").fitted(spec_of(""))
    assert [problem.path for problem in caught.value.problems] == ["spec.task.image"]
