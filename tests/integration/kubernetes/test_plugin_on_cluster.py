"""`kubectl haversack` against a daemon that schedules a cluster: pods lead to why they wait."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.kubernetes import objects
from support.kubernetes.deployment import Deployment, daemon_on, deployed
from support.kubernetes.fake_server import running_fake
from support.kubernetes.ground import Ground
from support.plugin import kubectl_haversack


@pytest.fixture
def on_cluster(tmp_path: Path) -> Iterator[Deployment]:
    with running_fake() as running:
        ground = Ground(
            running.access,
            lambda user: running.do(lambda fake: fake.access_as(user)),
            lambda: running.do(lambda fake: fake.compact()),
            real=False,
        )
        daemon = daemon_on(ground, tmp_path)
        daemon.start()
        yield deployed(ground, daemon)
        assert daemon.stop() == 0


def explained(on_cluster: Deployment, *words: str) -> str:
    return kubectl_haversack(on_cluster.daemon, "explain", *words).stdout


def test_pods_are_explained_by_their_gang_or_by_what_they_lack(on_cluster: Deployment) -> None:
    space = on_cluster.namespace
    node = on_cluster.node("a", gpus=8)
    *early, last = objects.gang("late", 3, gpus=1)
    on_cluster.create([*early, *objects.gang("big", 2, gpus=6), objects.pod("fits", gpus=1)])
    claims = {"name": "data", "persistentVolumeClaim": {"claimName": "none"}}
    on_cluster.create([objects.pod("claims", volumes=[claims])])

    # In a gang that is not whole, or refused: in no job.
    on_cluster.until(
        lambda: "waiting for 2 of 3 pods" in explained(on_cluster, "pod", "late-0", "-n", space),
        "a pod of an incomplete gang is not explained",
    )
    on_cluster.until(
        lambda: "PersistentVolumeClaim none" in explained(on_cluster, f"{space}/claims"),
        "a refused pod is not explained",
    )
    # In a gang that does not fit.
    on_cluster.until(
        lambda: "REASON" in explained(on_cluster, "pod/big-1", "-n", space),
        "a gang that does not fit is not explained",
    )
    told = explained(on_cluster, "pod/big-1", "-n", space)
    assert told.startswith(f"pod {space}/big-1 is task 1 of 2 of job big (")
    assert "never-fits" in told
    assert "ask for less" in told
    # Whole at last: bound, and said to be.
    on_cluster.create([last])
    on_cluster.until(lambda: on_cluster.all_bound("late", 3), "the gang was not bound")
    assert node in explained(on_cluster, f"{space}/late-2")
    text = kubectl_haversack(on_cluster.daemon, "describe", "job", "late", "-n", space).stdout
    pods = text[text.index("Pods:") : text.index("Attempt 1")].splitlines()[2:]
    assert [line.split()[:3] for line in pods] == [
        [str(rank), f"{space}/late-{rank}", node] for rank in range(3)
    ]
    missing = kubectl_haversack(on_cluster.daemon, "explain", "pod", "nobody", "-n", space)
    assert missing.returncode == 1
    assert f'pods "{space}/nobody" not found' in missing.stderr
