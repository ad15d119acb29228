"""The daemon killed while it pins a gang: what it did is found on the pods, and completed once.

There is no kube-scheduler here: the test binds, as that one would, what was pinned and released.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.kubernetes import objects
from support.kubernetes.client import Json
from support.kubernetes.deployment import Deployment, daemon_on, deployed
from support.kubernetes.fake_server import running_fake
from support.kubernetes.ground import Ground
from support.kubernetes.resources import LEASES, PODS

GATE = "haversack.dev/placement"
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"


@pytest.fixture
def faked() -> Iterator[Ground]:
    with running_fake() as running:
        yield Ground(running.access, lambda _: running.access, lambda: None, real=False)


def test_a_gang_released_in_part_is_completed_after_kill_9(ground: Ground, tmp_path: Path) -> None:
    _dies_and_goes_on(ground, tmp_path, "ungate-before-send@2")


@pytest.mark.parametrize(
    "point",
    ["pin-before-send@2", "pin-after-send@1", "pin-after-send@3", "ungate-after-send@3"],
)
def test_a_gang_is_pinned_once_wherever_it_dies(faked: Ground, tmp_path: Path, point: str) -> None:
    _dies_and_goes_on(faked, tmp_path, point)


def _dies_and_goes_on(ground: Ground, folder: Path, point: str) -> None:
    on_cluster = _with_gang(ground, folder, point)
    before = _pins(on_cluster)
    on_cluster.daemon.start()
    on_cluster.until(lambda: _released(on_cluster) == 3, "the gang was not completed")
    after = _pins(on_cluster)
    assert all(after[name] == node for name, node in before.items() if node)
    assert max(list(after.values()).count(node) for node in after.values()) <= 2
    assert on_cluster.nodes_of("gang") == dict.fromkeys(after, "")
    marks = [pod["metadata"]["annotations"] for pod in _gang(on_cluster)]
    assert len({each["haversack.dev/attempt"] for each in marks}) == 1
    # The test is the daemon's own account, whose bindings must show the epoch.
    lease = on_cluster.ask("GET", LEASES.path("haversack-system", "haversack-epoch")).ok()
    epoch = {"haversack.dev/epoch": str(lease["spec"]["leaseTransitions"])}
    for name, node in after.items():
        path = PODS.path(on_cluster.namespace, name, "binding")
        on_cluster.ask("POST", path, objects.binding(name, node, annotations=epoch)).ok()
        on_cluster.end(name, "Succeeded", 0)
    on_cluster.until(
        lambda: [job["state"] for job in on_cluster.jobs()] == ["SUCCEEDED"], "it did not end"
    )
    on_cluster.clear()
    assert on_cluster.daemon.stop() == 0


def test_a_gang_that_loses_a_member_while_half_released_is_given_up_whole(
    faked: Ground, tmp_path: Path
) -> None:
    on_cluster = _with_gang(faked, tmp_path, "ungate-before-send@2")
    gated = [pod["metadata"]["name"] for pod in _gang(on_cluster) if _gates(pod)]
    on_cluster.delete(gated[0])
    on_cluster.daemon.start()
    on_cluster.until(lambda: not _gang(on_cluster), "some of a lost gang are left")
    on_cluster.until(
        lambda: [job["state"] for job in on_cluster.jobs()] == ["CANCELLED"], "its job goes on"
    )
    assert on_cluster.daemon.stop() == 0


def _with_gang(ground: Ground, folder: Path, point: str) -> Deployment:
    """A daemon that has died at this point of pinning a gang of three."""
    on_cluster = deployed(ground, daemon_on(ground, folder))
    on_cluster.node("a", gpus=2)
    on_cluster.node("b", gpus=2)
    name, _, nth = point.partition("@")
    on_cluster.daemon.start(failpoints=f"{name}=kill@{nth}")
    on_cluster.create(objects.gang("gang", 3, gpus=1, scheduler="default-scheduler", gates=[GATE]))
    assert on_cluster.daemon.wait_dead(), "the failpoint was not met"
    return on_cluster


def _gang(on_cluster: Deployment) -> list[Json]:
    return [pod for name, pod in on_cluster.pods().items() if name.startswith("gang")]


def _gates(pod: Json) -> list[Json]:
    found: list[Json] = pod["spec"].get("schedulingGates", [])
    return found


def _released(on_cluster: Deployment) -> int:
    return sum(not _gates(pod) for pod in _gang(on_cluster))


def _pins(on_cluster: Deployment) -> dict[str, str]:
    """Where each is pinned; "" for nowhere."""
    found = {}
    for pod in _gang(on_cluster):
        affinity = pod["spec"].get("affinity", {}).get("nodeAffinity", {})
        terms = affinity.get(REQUIRED, {}).get("nodeSelectorTerms", ())
        named = [field["values"][0] for term in terms for field in term["matchFields"]]
        found[pod["metadata"]["name"]] = named[0] if named else ""
    return found
