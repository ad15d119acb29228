"""How fast gangs and pods are bound on a real API server, beside kube-scheduler on the same one.

- 3,000 one-GPU pods on 500 nodes of 8 GPUs, all there before the scheduler starts: pods a second
  from the start of its process to the last binding, as a watch sees them. At least three times
  kube-scheduler's, and no node is over-committed.
- 400 gangs of 8 one-GPU pods with room for 350 of them: exactly 350 whole gangs, no part of one.

Both schedulers get the same limit of requests (5,000 a second). Needs etcd, kube-apiserver and
kube-scheduler where envtest looks for them; exits 1 when a figure is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.daemon import DaemonProcess
from support.kubernetes import objects
from support.kubernetes.client import Client, Json
from support.kubernetes.real_server import ControlPlane, NoControlPlaneError, control_plane

GPUS = 8
RATIO_MIN = 3.0
PATIENCE_S = 300.0
AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Seen:
    """What a watch saw.

    Attributes:
        bound: node of each pod that got one, by name.
        last_s: seconds from the scheduler's start to the last binding.
        overcommitted: nodes with more GPUs asked for than they have.
    """

    bound: dict[str, str]
    last_s: float
    overcommitted: int


async def _create(plane: ControlPlane, path: str, documents: list[Json]) -> None:
    slots = asyncio.Semaphore(AT_ONCE)
    async with Client(plane.access) as client:

        async def one(document: Json) -> None:
            async with slots:
                (await client.post(path, document)).ok()

        await asyncio.gather(*map(one, documents))


async def _bindings(plane: ControlPlane, namespace: str, wanted: int, quiet_s: float) -> Seen:
    """Follow the namespace's pods until so many are bound, or nothing happens for a while."""
    bound: dict[str, str] = {}
    began = last = time.monotonic()
    async with Client(plane.access) as client:
        path = f"/api/v1/namespaces/{namespace}/pods"
        async with client.watch(path, resourceVersion="0") as watch:
            while len(bound) < wanted:
                try:
                    event = await watch.next(within_s=quiet_s if bound else PATIENCE_S)
                except TimeoutError:
                    break
                if event is None:
                    break
                node = event["object"].get("spec", {}).get("nodeName")
                if node and event["object"]["metadata"]["name"] not in bound:
                    bound[event["object"]["metadata"]["name"]] = node
                    last = time.monotonic()
    load = Counter(bound.values())
    return Seen(bound, last - began, sum(count > GPUS for count in load.values()))


@contextlib.contextmanager
def _ours(plane: ControlPlane) -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder:
        daemon = DaemonProcess(
            Path(folder) / "data",
            settings={"KUBERNETES__KUBECONFIG": str(plane.kubeconfig())},
            arguments=("--executor", "kubernetes"),
        )
        daemon.start(wait=False)
        try:
            yield
        finally:
            daemon.stop()


@contextlib.contextmanager
def _theirs(plane: ControlPlane) -> Iterator[None]:
    plane.start_scheduler()  # its defaults here: 5,000 requests a second
    try:
        yield
    finally:
        plane.stop("kube-scheduler")


def _nodes(count: int) -> list[Json]:
    return [objects.node(f"node-{place:04d}", gpus=GPUS) for place in range(count)]


def rate(nodes: int, pods: int, *, ours: bool) -> tuple[float, Seen]:
    """Pods a second, on a control plane of its own."""
    scheduler = "haversack" if ours else "default-scheduler"
    with control_plane() as plane:
        asyncio.run(_create(plane, "/api/v1/nodes", _nodes(nodes)))
        wanted = [objects.pod(f"pod-{i:05d}", gpus=1, scheduler=scheduler) for i in range(pods)]
        asyncio.run(_create(plane, "/api/v1/namespaces/default/pods", wanted))
        with _ours(plane) if ours else _theirs(plane):
            seen = asyncio.run(_bindings(plane, "default", pods, quiet_s=30.0))
    return len(seen.bound) / max(seen.last_s, 1e-9), seen


def gangs(nodes: int, wanted: int, room: int) -> tuple[int, int, float]:
    """Whole gangs, gangs bound in part, seconds."""
    with control_plane() as plane:
        asyncio.run(_create(plane, "/api/v1/nodes", _nodes(nodes)))
        # Whoever holds the rest of the GPUs leaves room for so many gangs of eight.
        filler = [
            objects.pod(f"filler-{i:04d}", gpus=GPUS, scheduler="x", nodeName=f"node-{i:04d}")
            for i in range(nodes - room)
        ]
        asyncio.run(_create(plane, "/api/v1/namespaces/kube-system/pods", _moved(filler)))
        pods = [pod for i in range(wanted) for pod in objects.gang(f"gang-{i:03d}", 8, gpus=1)]
        asyncio.run(_create(plane, "/api/v1/namespaces/default/pods", pods))
        with _ours(plane):
            seen = asyncio.run(_bindings(plane, "default", room * 8 + 1, quiet_s=15.0))
    sizes = Counter(name.rsplit("-", 1)[0] for name in seen.bound)
    whole = sum(size == 8 for size in sizes.values())
    return whole, len(sizes) - whole, seen.last_s


def _moved(pods: list[Json]) -> list[Json]:
    for pod in pods:
        pod["metadata"]["namespace"] = "kube-system"
    return pods


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    """Run and judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=500)
    parser.add_argument("--pods", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--skip-gangs", action="store_true")
    asked = parser.parse_args()
    failures = []
    try:
        for _ in range(asked.rounds):
            theirs, _ = rate(asked.nodes, asked.pods, ours=False)
            mine, seen = rate(asked.nodes, asked.pods, ours=True)
            _say(
                f"{asked.pods} pods on {asked.nodes} nodes: kube-scheduler {theirs:.0f} pods/s,"
                f" Haversack {mine:.0f} pods/s ({mine / theirs:.2f}x);"
                f" {seen.overcommitted} nodes over-committed"
            )
            if mine < RATIO_MIN * theirs:
                failures.append(f"{mine / theirs:.2f} times kube-scheduler's rate")
            if seen.overcommitted or len(seen.bound) < asked.pods:
                failures.append(f"{seen.overcommitted} over-committed, {len(seen.bound)} bound")
        if not asked.skip_gangs:
            whole, partial, took_s = gangs(asked.nodes, 400, 350)
            _say(f"400 gangs of 8, room for 350: {whole} whole, {partial} partial, {took_s:.1f} s")
            if (whole, partial) != (350, 0):
                failures.append(f"{whole} whole gangs, {partial} partial")
    except NoControlPlaneError as error:
        _say(f"skipped: {error}")
        return 0
    for failure in failures:
        _say(f"MISSED: {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
