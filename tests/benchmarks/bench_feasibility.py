"""Whether Haversack and kube-scheduler name the same nodes for random pods on random clusters.

300 pods with selectors, node affinity, tolerations, host ports and requests of every kind are
created on a real API server, one at a time, on clusters with taints, cordons and placed pods.
kube-scheduler, with all its own filters, tells an extender which nodes are feasible; Haversack's
set is that of its own path from the same objects. Its decision must also take a feasible node.
Prints what was drawn and why nodes were turned down; any difference exits 1.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.kubernetes import objects
from support.kubernetes.client import Client
from support.kubernetes.feasibility import Comparison, compare
from support.kubernetes.real_server import ControlPlane, NoControlPlaneError, control_plane

_NAMESPACE = "feasibility"


async def _judged(plane: ControlPlane, seed: int, pods: int, each: int) -> Comparison:
    async with Client(plane.access) as client:
        (await client.post("/api/v1/namespaces", objects.namespace(_NAMESPACE))).ok()
    return await compare(plane, _NAMESPACE, seed=seed, pods=pods, each=each)


def main() -> int:
    """Run and judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pods", type=int, default=300)
    parser.add_argument("--each", type=int, default=5, help="pods that meet the same cluster")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    try:
        with control_plane() as plane:
            done = asyncio.run(_judged(plane, asked.seed, asked.pods, asked.each))
    except NoControlPlaneError as error:
        sys.stdout.write(f"skipped: {error}\n")
        return 0
    sys.stdout.write(f"seed {asked.seed}: {done.report()}\n")
    for verdict in done.differences:
        sys.stdout.write(f"MISSED: {verdict.told()}\n")
    return 1 if done.differences else 0


if __name__ == "__main__":
    sys.exit(main())
