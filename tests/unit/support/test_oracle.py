"""The oracle of fault runs has teeth: it sees what must never happen, and nothing else."""

from __future__ import annotations

import pytest
from support.kubernetes import objects
from support.kubernetes.fake_server import ADMIN, FakeApiServer
from support.kubernetes.oracle import Oracle
from support.kubernetes.resources import NODES, PODS, Target

GPU = "nvidia.com/gpu"


@pytest.fixture
def fake() -> FakeApiServer:
    server = FakeApiServer()
    server.create(objects.node("a", gpus=2))
    server.create(objects.node("b", gpus=2))
    return server


@pytest.fixture
def oracle(fake: FakeApiServer) -> Oracle:
    found = Oracle()
    fake.witness(found)
    for node in fake.objects(NODES):  # those that were there before
        fake.stock(node)
    return found


def _bind(fake: FakeApiServer, pod: str, node: str, attempt: str = "a-1") -> None:
    marks = {"annotations": {"haversack.dev/attempt": attempt}}
    fake.operations.bind(Target(PODS, "default", pod), objects.binding(pod, node, **marks), ADMIN)


def test_a_full_node_is_not_over_committed(fake: FakeApiServer, oracle: Oracle) -> None:
    for name in "pqr":
        fake.create(objects.pod(name, gpus=1))
    _bind(fake, "p", "a")
    _bind(fake, "q", "a")
    assert oracle.used("a", GPU) == 2
    fake.operations.delete(Target(PODS, "default", "p"), {"gracePeriodSeconds": 0})
    _bind(fake, "r", "a")
    assert (oracle.violations, oracle.bindings, oracle.used("a", GPU)) == ([], 3, 2)


def test_one_pod_too_many_is_seen_though_it_goes_at_once(
    fake: FakeApiServer, oracle: Oracle
) -> None:
    for name in "pqr":
        fake.create(objects.pod(name, gpus=1))
        _bind(fake, name, "a")
    fake.operations.delete(Target(PODS, "default", "r"), {"gracePeriodSeconds": 0})
    assert oracle.violations == ["pod default/r: over-commits a: 3 of nvidia.com/gpu"]


def test_a_gang_that_is_bound_for_two_attempts_is_seen(fake: FakeApiServer, oracle: Oracle) -> None:
    for pod in objects.gang("g", 2, gpus=1):
        fake.create(pod)
    _bind(fake, "g-0", "a", "a-1")
    _bind(fake, "g-1", "b", "a-2")
    (told,) = oracle.violations
    assert "default/g-1" in told
    assert "['a-1', 'a-2']" in told


def test_a_pod_that_moves_is_seen(fake: FakeApiServer, oracle: Oracle) -> None:
    fake.create(objects.pod("p", gpus=1))
    _bind(fake, "p", "a")
    (pod,) = fake.objects(PODS)
    fake.stock({**pod, "spec": {**pod["spec"], "nodeName": "b"}})
    assert oracle.violations == ["pod default/p: moved from a to b"]
