"""The whole daemon on a cluster: gangs of pods that name it are bound, or told why they wait."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.daemon import DaemonProcess
from support.kubernetes import objects
from support.kubernetes.deployment import Deployment, daemon_on, deployed
from support.kubernetes.ground import Ground


@pytest.fixture(scope="module")
def daemon(
    shared_ground: Ground, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DaemonProcess]:
    """One for all tests of a ground; it must end in good order after all of them."""
    running = daemon_on(shared_ground, tmp_path_factory.mktemp("daemon"))
    running.start()
    yield running
    assert running.stop() == 0
    log = running.log_file.read_text()
    assert "Unclosed" not in log
    assert "Traceback" not in log


@pytest.fixture
def on_cluster(shared_ground: Ground, daemon: DaemonProcess) -> Iterator[Deployment]:
    """Nodes, pods and jobs of one test alone."""
    deployment = deployed(shared_ground, daemon)
    yield deployment
    deployment.clear()


def test_gangs_are_bound_whole_with_our_marks_and_appear_as_jobs(on_cluster: Deployment) -> None:
    on_cluster.node("a", gpus=8)
    on_cluster.node("b", gpus=8)
    on_cluster.create([objects.pod("single", gpus=1), *objects.gang("wide", 3, gpus=4)])
    on_cluster.until(lambda: on_cluster.all_bound("", 4), "the pods were not bound")
    for name, pod in on_cluster.pods().items():
        marks = pod["metadata"]["annotations"]
        assert marks["haversack.dev/epoch"].isdecimal()
        assert marks["haversack.dev/tasks"] == ("1" if name == "single" else "3")
        assert len(marks["haversack.dev/gpus"].split(",")) == (1 if name == "single" else 4)
    wide = on_cluster.nodes_of("wide")
    assert all(list(wide.values()).count(node) <= 2 for node in wide.values())
    jobs = {job["name"]: job for job in on_cluster.jobs()}
    assert jobs["wide"]["origin"] == jobs["single"]["origin"] == "kubernetes"
    assert jobs["wide"]["tenant"] == on_cluster.namespace
    assert jobs["wide"]["state"] == "LAUNCHING"


def test_a_gang_waits_for_its_last_pod_and_says_so(on_cluster: Deployment) -> None:
    on_cluster.node("a", gpus=8)
    *early, last = objects.gang("late", 3, gpus=1)
    on_cluster.create(early)
    on_cluster.until(
        lambda: _message(on_cluster, "late-0") == "waiting for 2 of 3 pods", "no condition"
    )
    assert set(on_cluster.nodes_of("late").values()) == {""}
    on_cluster.create([last])
    on_cluster.until(lambda: on_cluster.all_bound("late", 3), "the gang was not bound")


def test_a_gang_that_does_not_fit_binds_nobody_until_there_is_room(on_cluster: Deployment) -> None:
    on_cluster.node("a", gpus=4)
    on_cluster.create(objects.gang("big", 2, gpus=4))
    on_cluster.until(lambda: "8" in _message(on_cluster, "big-1"), "it was not told why it waits")
    assert set(on_cluster.nodes_of("big").values()) == {""}
    on_cluster.node("b", gpus=4)
    on_cluster.until(lambda: on_cluster.all_bound("big", 2), "new room was not used")


def test_pods_of_other_schedulers_take_their_room(on_cluster: Deployment) -> None:
    node = on_cluster.node("a", gpus=4)
    on_cluster.create([objects.pod("other", gpus=3, scheduler="somebody-else", nodeName=node)])
    on_cluster.create([objects.pod("two", gpus=2), objects.pod("one", gpus=1)])
    on_cluster.until(lambda: bool(on_cluster.nodes_of("one")["one"]), "one GPU was free")
    on_cluster.until(lambda: "GPU" in _message(on_cluster, "two").upper(), "no reason")
    on_cluster.delete("other")
    on_cluster.until(lambda: on_cluster.all_bound("two", 1), "freed room was not used")


def test_a_waiting_gang_that_loses_a_pod_is_withdrawn(on_cluster: Deployment) -> None:
    on_cluster.node("a", gpus=1)
    on_cluster.create(objects.gang("lost", 2, gpus=1))
    on_cluster.until(lambda: any(j["name"] == "lost" for j in on_cluster.jobs()), "no job")
    on_cluster.delete("lost-0")
    on_cluster.until(
        lambda: [j["state"] for j in on_cluster.jobs() if j["name"] == "lost"] == ["CANCELLED"],
        "the job of a gang that lost a pod goes on waiting",
    )
    on_cluster.create([objects.gang("lost", 2, gpus=1)[0]])
    on_cluster.node("b", gpus=1)
    on_cluster.until(lambda: on_cluster.all_bound("lost", 2), "the new gang was not bound")


def test_pods_that_end_free_their_room_and_end_their_job(on_cluster: Deployment) -> None:
    on_cluster.node("a", gpus=2)
    on_cluster.create([objects.pod("first", gpus=2), objects.pod("second", gpus=2)])
    on_cluster.until(lambda: sorted(map(bool, on_cluster.nodes_of("").values())) == [0, 1], "none")
    (done,) = [name for name, node in on_cluster.nodes_of("").items() if node]
    (waits,) = {"first", "second"} - {done}
    on_cluster.end(done, "Succeeded", 0)
    on_cluster.until(lambda: bool(on_cluster.nodes_of(waits)[waits]), "the room was not freed")
    on_cluster.end(waits, "Failed", 3)
    on_cluster.until(
        lambda: (
            {j["name"]: j["state"] for j in on_cluster.jobs()}
            == {done: "SUCCEEDED", waits: "FAILED"}
        ),
        "the ends were not recorded",
    )
    (failed,) = [job for job in on_cluster.jobs() if job["name"] == waits]
    assert failed["exit_code"] == 3


def test_selectors_and_taints_hold(on_cluster: Deployment) -> None:
    taint = {"key": "team", "value": "a", "effect": "NoSchedule"}
    on_cluster.node("tainted", gpus=8, taints=[taint])
    right = on_cluster.node("right", gpus=8, labels={"disk": "fast"})
    on_cluster.node("wrong", gpus=8)
    on_cluster.create([objects.pod("picky", gpus=1, nodeSelector={"disk": "fast"})])
    tolerates = {"key": "team", "operator": "Equal", "value": "a", "effect": "NoSchedule"}
    on_cluster.create([objects.pod("patient", gpus=8, tolerations=[tolerates])])
    on_cluster.create([objects.pod("greedy", gpus=8)])
    on_cluster.until(lambda: on_cluster.all_bound("", 3), "the pods were not bound")
    assert on_cluster.nodes_of("picky")["picky"] == right
    assert not on_cluster.nodes_of("greedy")["greedy"].endswith("tainted")
    assert on_cluster.nodes_of("patient")["patient"].endswith("tainted")


def test_a_cancelled_job_loses_its_pods_and_one_that_waits_is_told(on_cluster: Deployment) -> None:
    on_cluster.node("a", gpus=2)
    on_cluster.create([objects.pod("runs", gpus=2)])
    on_cluster.until(lambda: on_cluster.all_bound("runs", 1), "the pod was not bound")
    on_cluster.create([objects.pod("waits", gpus=2)])
    on_cluster.until(lambda: len(on_cluster.jobs()) == 2, "each pod is one job")
    ids = {job["name"]: job["id"] for job in on_cluster.jobs()}
    on_cluster.cancel(ids["waits"])
    on_cluster.until(lambda: "CANCELLED" in _message(on_cluster, "waits"), "it was not told")
    on_cluster.cancel(ids["runs"])
    on_cluster.until(lambda: _leaves(on_cluster, "runs"), "the pod was not deleted")
    assert on_cluster.nodes_of("waits") == {"waits": ""}


def test_a_need_that_is_not_modelled_is_refused_with_field_and_remedy(
    on_cluster: Deployment,
) -> None:
    on_cluster.node("a", gpus=4)
    claim = {"name": "data", "persistentVolumeClaim": {"claimName": "nowhere"}}
    on_cluster.create([objects.pod("stuck", gpus=1, volumes=[claim])])
    on_cluster.until(
        lambda: "PersistentVolumeClaim nowhere" in _message(on_cluster, "stuck"), "no reason"
    )
    assert on_cluster.nodes_of("stuck")["stuck"] == ""


def _message(on_cluster: Deployment, name: str) -> str:
    """What the pod's PodScheduled condition says."""
    conditions = on_cluster.pods()[name]["status"].get("conditions", ())
    return next((c.get("message", "") for c in conditions if c["type"] == "PodScheduled"), "")


def _leaves(on_cluster: Deployment, name: str) -> bool:
    pod = on_cluster.pods().get(name)
    return pod is None or "deletionTimestamp" in pod["metadata"]
