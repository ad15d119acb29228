"""Haversack and kube-scheduler name the same nodes for random pods on random clusters.

HAVERSACK_FEASIBILITY_PODS judges more pods than the default run has time for, and
HAVERSACK_FEASIBILITY_SEED others; `tests/benchmarks/bench_feasibility.py` counts what was judged.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest
from support.kubernetes import objects
from support.kubernetes.client import Client
from support.kubernetes.feasibility import Comparison, compare
from support.kubernetes.real_server import ControlPlane, NoControlPlaneError, control_plane

PODS = int(os.environ.get("HAVERSACK_FEASIBILITY_PODS", "40"))
SEED = int(os.environ.get("HAVERSACK_FEASIBILITY_SEED", "1"))
_NAMESPACE = "feasibility"


@pytest.fixture
def own_plane() -> Iterator[ControlPlane]:
    """A control plane without others' nodes, policies and waiting pods."""
    try:
        with control_plane() as running:
            yield running
    except NoControlPlaneError as error:
        pytest.skip(f"tests against a real API server do not run: {error}")


@pytest.mark.cluster
def test_both_schedulers_name_the_same_nodes(own_plane: ControlPlane) -> None:
    async def judged() -> Comparison:
        async with Client(own_plane.access) as client:
            (await client.post("/api/v1/namespaces", objects.namespace(_NAMESPACE))).ok()
        return await compare(own_plane, _NAMESPACE, seed=SEED, pods=PODS, each=8)

    done = asyncio.run(judged())
    assert not done.differences, "\n".join(verdict.told() for verdict in done.differences)
    assert done.agreed == PODS
    assert 0.1 < done.feasible / done.asked < 0.9, done.report()
    assert len(done.reasons) >= 8, f"too few ways to turn a node down:\n{done.report()}"
