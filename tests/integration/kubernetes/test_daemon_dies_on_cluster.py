"""The daemon on a cluster, when it is killed, cannot begin, or must end at once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from support.kubernetes import objects
from support.kubernetes.client import Json
from support.kubernetes.deployment import Deployment, daemon_on, deployed
from support.kubernetes.fake_server import ADMIN, RunningFake, running_fake
from support.kubernetes.ground import Ground


def test_after_kill_9_nothing_is_bound_twice_and_nothing_is_forgotten(
    ground: Ground,
    tmp_path: Path,
) -> None:
    on_cluster = deployed(ground, daemon_on(ground, tmp_path))
    on_cluster.daemon.start()
    on_cluster.node("a", gpus=4)
    gone = on_cluster.node("b", gpus=0)
    on_cluster.create([objects.pod(f"p{place}", gpus=1) for place in range(3)])
    on_cluster.until(lambda: on_cluster.all_bound("p", 3), "the pods were not bound")
    on_cluster.until(lambda: gone in _nodes_known(on_cluster), "the node was not taken in")
    on_cluster.daemon.kill()
    on_cluster.create([objects.pod(f"q{place}", gpus=1) for place in range(2)])
    on_cluster.remove_node(gone)
    on_cluster.daemon.start()
    assert gone not in _nodes_known(on_cluster)
    on_cluster.until(lambda: sum(map(bool, on_cluster.nodes_of("q").values())) == 1, "one is free")
    on_cluster.until(lambda: len(on_cluster.jobs()) == 5, "each pod is one job")
    states = sorted(job["state"] for job in on_cluster.jobs())
    assert states == ["LAUNCHING"] * 4 + ["PENDING"]
    on_cluster.clear()
    assert on_cluster.daemon.stop() == 0


@pytest.mark.parametrize(
    "point",
    [
        "plan-after-commit",
        "intent-claimed",
        "bind-before-send@2",
        "bind-after-send@1",
        "bind-after-send@3",
        "launch-settled",
    ],
)
def test_a_gang_is_bound_once_wherever_its_binding_dies(
    ground: Ground, tmp_path: Path, point: str
) -> None:
    on_cluster = deployed(ground, daemon_on(ground, tmp_path))
    on_cluster.node("a", gpus=2)
    on_cluster.node("b", gpus=2)
    name, _, nth = point.partition("@")
    on_cluster.create(objects.gang("gang", 3, gpus=1))
    # It decides before it answers: so it may die before.
    on_cluster.daemon.start(failpoints=f"{name}=kill" + (f"@{nth}" if nth else ""), wait=False)
    assert on_cluster.daemon.wait_dead(), "the failpoint was not met"
    before = on_cluster.nodes_of("gang")
    on_cluster.daemon.start()
    on_cluster.until(lambda: on_cluster.all_bound("gang", 3), "the gang was not completed")
    after = on_cluster.nodes_of("gang")
    assert all(after[pod] == node for pod, node in before.items() if node)
    assert max(list(after.values()).count(node) for node in after.values()) <= 2
    attempts = {p["metadata"]["annotations"]["haversack.dev/attempt"] for p in _pods(on_cluster)}
    assert len(attempts) == 1
    assert [job["name"] for job in on_cluster.jobs()] == ["gang"]
    on_cluster.clear()
    assert on_cluster.daemon.stop() == 0


def _pods(on_cluster: Deployment) -> list[Json]:
    return [pod for name, pod in on_cluster.pods().items() if name.startswith("gang")]


def test_a_cluster_that_does_not_answer_ends_the_start_with_its_address(tmp_path: Path) -> None:
    with running_fake() as running:
        ground = _fake_ground(running)
    daemon = daemon_on(ground, tmp_path)
    daemon.start(wait=False)
    assert daemon.wait_dead()
    assert daemon.process is not None
    assert daemon.process.returncode not in (0, None)
    log = daemon.log_file.read_text()
    assert ground.access.base_url in log
    assert "Traceback" not in log
    assert "Unclosed" not in log


def test_a_cluster_that_shows_us_no_pods_ends_the_start_with_what_is_missing(
    tmp_path: Path,
) -> None:
    with running_fake() as running:
        running.do(lambda fake: fake.deny(ADMIN, "list", "pods"))
        running.do(lambda fake: fake.deny(ADMIN, "watch", "pods"))
        daemon = daemon_on(_fake_ground(running), tmp_path, KUBERNETES__SYNC_S="2")
        daemon.start(wait=False)
        assert daemon.wait_dead()
        assert daemon.process is not None
        assert daemon.process.returncode not in (0, None)
    log = daemon.log_file.read_text()
    assert "not read within 2 s: pods:" in log
    assert "HAVERSACK_KUBERNETES__SYNC_S" in log
    assert "Traceback" not in log
    assert "Unclosed" not in log


def test_who_is_told_to_stop_while_it_begins_stops(tmp_path: Path) -> None:
    with running_fake() as running:
        running.do(lambda fake: fake.deny(ADMIN, "list", "pods"))
        running.do(lambda fake: fake.deny(ADMIN, "watch", "pods"))
        daemon = daemon_on(_fake_ground(running), tmp_path)
        daemon.start(wait=False)
        deadline = time.monotonic() + 60
        while not running.do(lambda fake: any(r.what == "pods" for r in fake.journal)):
            assert daemon.alive, daemon.log_tail()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert daemon.stop() == 0
    log = daemon.log_file.read_text()
    assert "Traceback" not in log
    assert "Unclosed" not in log


def _fake_ground(running: RunningFake) -> Ground:
    return Ground(running.access, lambda _: running.access, lambda: None, real=False)


def _nodes_known(on_cluster: Deployment) -> set[str]:
    with on_cluster.daemon.http() as client:
        found = client.get("/api/v1/nodes", params={"limit": 200})
        found.raise_for_status()
        return {node["name"] for node in found.json()["items"]}
