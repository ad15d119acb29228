"""Haversack and kube-scheduler name the same nodes for random pods on random clusters.

HAVERSACK_FEASIBILITY_PODS judges more pods than the default run has time for, and
HAVERSACK_FEASIBILITY_SEED others; `tests/benchmarks/bench_feasibility.py` counts what was judged.
"""

from __future__ import annotations

import asyncio
import os

import pytest
from support.kubernetes import objects
from support.kubernetes.client import Client
from support.kubernetes.feasibility import Comparison, compare
from support.kubernetes.real_server import ControlPlane

PODS = int(os.environ.get("HAVERSACK_FEASIBILITY_PODS", "40"))
SEED = int(os.environ.get("HAVERSACK_FEASIBILITY_SEED", "1"))
_NAMESPACE = "feasibility"


@pytest.mark.cluster
def test_both_schedulers_name_the_same_nodes(plane: ControlPlane) -> None:
    async def judged() -> Comparison:
        async with Client(plane.access) as client:
            (await client.post("/api/v1/namespaces", objects.namespace(_NAMESPACE))).ok()
        return await compare(plane, _NAMESPACE, seed=SEED, pods=PODS, each=8)

    done = asyncio.run(judged())
    assert not done.differences, "\n".join(verdict.told() for verdict in done.differences)
    assert done.agreed == PODS
    assert 0.1 < done.feasible / done.asked < 0.9, done.report()
    assert len(done.reasons) >= 8, f"too few ways to turn a node down:\n{done.report()}"
