"""The daemon on a cluster, when it is killed, cannot begin, or must end at once."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from support.kubernetes import objects
from support.kubernetes.access import access_to
from support.kubernetes.deployment import Deployment, daemon_on, deployed
from support.kubernetes.fake_server import running_fake
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


def _nodes_known(on_cluster: Deployment) -> set[str]:
    with on_cluster.daemon.http() as client:
        found = client.get("/api/v1/nodes", params={"limit": 200})
        found.raise_for_status()
        return {node["name"] for node in found.json()["items"]}
