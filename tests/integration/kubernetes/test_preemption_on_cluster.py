"""Higher priorities take the places of lower ones, as far as classes, policies and budgets allow.

There is no kubelet: the test takes the pods away that the daemon has told to go.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.daemon import DaemonProcess
from support.kubernetes import objects
from support.kubernetes.client import MERGE, Json
from support.kubernetes.deployment import Deployment, daemon_on, deployed
from support.kubernetes.ground import Ground
from support.kubernetes.resources import BUDGETS, PRIORITY_CLASSES


@pytest.fixture(scope="module")
def daemon(
    shared_ground: Ground, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DaemonProcess]:
    folder = tmp_path_factory.mktemp("daemon")
    running = daemon_on(shared_ground, folder, QUEUE__POLICY="priority-preempt")
    running.start()
    yield running
    assert running.stop() == 0
    assert "Traceback" not in running.log_file.read_text()


@pytest.fixture
def on_cluster(shared_ground: Ground, daemon: DaemonProcess) -> Iterator[Deployment]:
    deployment = deployed(shared_ground, daemon)
    yield deployment
    deployment.clear()


def _class(on_cluster: Deployment, name: str, value: int, **fields: str) -> str:
    full = f"{on_cluster.namespace}-{name}"
    made = objects.priority_class(full, value, **fields)
    on_cluster.ask("POST", PRIORITY_CLASSES.path(), made).ok()
    return full


def _going(on_cluster: Deployment, prefix: str) -> dict[str, Json]:
    """Pods of this prefix that were told to go."""
    return {
        name: pod
        for name, pod in on_cluster.pods().items()
        if name.startswith(prefix) and "deletionTimestamp" in pod["metadata"]
    }


def _budget(on_cluster: Deployment, gang: str, allowed: int) -> None:
    """A budget over a gang's pods, with the status that its controller would write."""
    made = objects.disruption_budget(
        gang, {"haversack.dev/gang": gang}, namespace=on_cluster.namespace
    )
    stored = on_cluster.ask("POST", BUDGETS.path(on_cluster.namespace), made).ok()
    status = {
        "disruptionsAllowed": allowed,
        "currentHealthy": allowed + 1,
        "desiredHealthy": 1,
        "expectedPods": allowed + 1,
        "observedGeneration": stored["metadata"].get("generation", 1),
    }
    path = BUDGETS.path(on_cluster.namespace, gang, "status")
    on_cluster.ask("PATCH", path, {"status": status}, kind=MERGE).ok()


def _explained(on_cluster: Deployment, name: str) -> str:
    """Why the gang of this name waits; "" if none does."""
    waiting = [j for j in on_cluster.jobs() if (j["name"], j["state"]) == (name, "PENDING")]
    if not waiting:
        return ""
    (job,) = waiting
    with on_cluster.daemon.http() as client:
        return str(client.get(f"/api/v1/jobs/{job['id']}/explain").json()["summary"])


def test_a_whole_gang_of_lower_priority_yields_and_is_told_why(on_cluster: Deployment) -> None:
    on_cluster.node("a", gpus=4)
    on_cluster.node("b", gpus=4)
    low, high = _class(on_cluster, "low", 10), _class(on_cluster, "high", 1_000_000)
    on_cluster.create(objects.gang("modest", 2, gpus=2, priorityClassName=low))
    on_cluster.create(objects.gang("equal", 1, gpus=4, priorityClassName=high))
    on_cluster.until(lambda: on_cluster.all_bound("", 3), "there was room for all")
    on_cluster.create(objects.gang("urgent", 1, gpus=4, priorityClassName=high))
    on_cluster.until(lambda: len(_going(on_cluster, "modest")) == 2, "the gang did not yield whole")
    assert _going(on_cluster, "equal") == {}
    for pod in _going(on_cluster, "modest").values():
        (told,) = [c for c in pod["status"]["conditions"] if c["type"] == "DisruptionTarget"]
        assert (told["status"], told["reason"]) == ("True", "PreemptionByScheduler")
    assert on_cluster.nodes_of("urgent")["urgent-0"] == ""
    assert f"at priority 1000000, by the PriorityClass {high}" in _explained(on_cluster, "urgent")
    for name in ("modest-0", "modest-1"):
        on_cluster.delete(name)
    on_cluster.until(lambda: on_cluster.all_bound("urgent", 1), "it did not take the place")
    on_cluster.create(objects.gang("modest", 2, gpus=2, priorityClassName=low))
    on_cluster.until(lambda: "waits" in _explained(on_cluster, "modest"), "its new pods are no job")
    assert _going(on_cluster, "") == {}


def test_who_never_preempts_waits_and_its_priority_keeps_its_place(on_cluster: Deployment) -> None:
    on_cluster.node("a", gpus=2)
    modest = _class(on_cluster, "never", 500, preemptionPolicy="Never")
    on_cluster.create([objects.pod("runs", gpus=2)])
    on_cluster.until(lambda: on_cluster.all_bound("runs", 1), "the pod was not bound")
    on_cluster.create([objects.pod("polite", gpus=2, priorityClassName=modest)])
    on_cluster.create([objects.pod("behind", gpus=2, priorityClassName="")])
    on_cluster.until(lambda: len(on_cluster.jobs()) == 3, "each pod is a job")
    on_cluster.until(lambda: "waits" in _explained(on_cluster, "polite"), "no reason")
    assert _going(on_cluster, "") == {}
    on_cluster.end("runs", "Succeeded", 0)
    on_cluster.until(lambda: on_cluster.all_bound("polite", 1), "the first in line comes first")
    assert on_cluster.nodes_of("behind") == {"behind": ""}


def test_a_budget_protects_a_gang_until_it_allows_for_all_of_its_pods(
    on_cluster: Deployment,
) -> None:
    on_cluster.node("a", gpus=2)
    on_cluster.create(objects.gang("kept", 2, gpus=1))
    on_cluster.until(lambda: on_cluster.all_bound("kept", 2), "the gang was not bound")
    _budget(on_cluster, "kept", 1)
    on_cluster.until(
        lambda: f"budget {on_cluster.namespace}/kept allows 1" in on_cluster.daemon.log_tail(),
        "the budget was not taken in",
    )
    high = _class(on_cluster, "high", 1000)
    on_cluster.create([objects.pod("urgent", gpus=1, priorityClassName=high)])
    on_cluster.until(lambda: "waits" in _explained(on_cluster, "urgent"), "no reason")
    assert _going(on_cluster, "") == {}
    path = BUDGETS.path(on_cluster.namespace, "kept", "status")
    on_cluster.ask("PATCH", path, {"status": {"disruptionsAllowed": 2}}, kind=MERGE).ok()
    on_cluster.until(lambda: len(_going(on_cluster, "kept")) == 2, "the gang did not yield")
