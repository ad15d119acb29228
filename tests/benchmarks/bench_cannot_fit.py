"""How soon a gang of 80 GPUs is told that it cannot start on a full cluster of 4,000, and why.

- The decision: 500 nodes of 8 GPUs, every GPU with a job of its own; a gang of 80 one-GPU tasks
  arrives, and one of 10 tasks of 8. From the arrival in the snapshot to the plan with its reasons,
  in this process.
- The whole way on a real API server: 4,000 pods of others fill the nodes, a daemon runs; from the
  answer to the creation of the gang's last pod until a watch shows the reason in the condition
  PodScheduled of the first of its pods, and then of all, which depends on how fast the API server
  takes so many writes.

The answer must be there in less than a second by the clock, and its text must name what is needed,
what is free, who has the rest and what would help. CPU time, of this process or of the daemon and
its solver, stands beside it. A miss exits 1.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.builders import NOW, live_attempt, node, task_placement
from support.clusters import make_job, shape
from support.daemon import DaemonProcess
from support.kubernetes import objects
from support.kubernetes.client import Client, Json
from support.kubernetes.real_server import ControlPlane, NoControlPlaneError, control_plane
from support.processes import cpu_s

from policies.registry import profile_named
from scheduler.decide import remembering
from scheduler.model.ports import Effort
from scheduler.model.snapshot import Snapshot, SnapshotDelta

NODES, GPUS, WANTED = 500, 8, 80
LIMIT_S = 1.0
AT_ONCE = 64
GANGS = ((80, 1), (10, 8))
"""Tasks, and GPUs of each."""
_PODS = "/api/v1/namespaces/default/pods"
_OTHERS = "/api/v1/namespaces/kube-system/pods"


@dataclass(frozen=True, slots=True)
class Told:
    """One gang, and what it was told.

    Attributes:
        seconds: until the reason was there, by the clock; of pods, the first and the last.
        cpu_s: CPU time that it took.
        message: the reason.
    """

    what: str
    seconds: tuple[float, ...]
    cpu_s: float
    message: str

    def misses(self) -> list[str]:
        """What is wrong with it."""
        wanted = (
            f"needs {WANTED} GPUs",
            "0 free",
            f"{WANTED} more must come free",
            "or 10 more",
            "lower priority",
        )
        missing = [
            f"{self.what}: the text lacks {each!r}" for each in wanted if each not in self.message
        ]
        if self.seconds[0] >= LIMIT_S:
            missing.append(f"{self.what}: {self.seconds[0]:.2f} s")
        return missing


def decisions(nodes: int) -> list[Told]:
    """The decision alone, on a snapshot that was decided on before, as a worker's are."""
    here = [node(f"n{number:04d}", GPUS) for number in range(nodes)]
    live = [
        live_attempt(
            task_placement(each, (gpu,)),
            attempt_id=f"a-{each.name}-{gpu}",
            job_id=f"j-{each.name}-{gpu}",
        )
        for each in here
        for gpu in range(GPUS)
    ]
    full = Snapshot().apply(SnapshotDelta(0, 1, nodes=tuple(here), live=tuple(live)))
    decide, profile, told = remembering(), profile_named("priority-age"), []
    for tasks, gpus in GANGS:
        gang = make_job(f"gang-{tasks}", shape(gpus, tasks=tasks))
        began, worked = time.perf_counter(), time.process_time()
        asked = full.apply(SnapshotDelta(1, 2, waiting=(gang,)))
        (*_, plan) = decide(asked, profile, Effort(), NOW, 0)
        took = time.perf_counter() - began, time.process_time() - worked
        message = "; ".join(reason.message for each in plan.waiting for reason in each.reasons)
        told.append(Told(f"decision, {tasks} x {gpus} GPUs", (took[0],), took[1], message))
    return told


async def _create(plane: ControlPlane, path: str, documents: Sequence[Json]) -> None:
    slots = asyncio.Semaphore(AT_ONCE)
    async with Client(plane.access) as client:

        async def one(document: Json) -> None:
            async with slots:
                (await client.post(path, document)).ok()

        await asyncio.gather(*map(one, documents))


async def _fill(plane: ControlPlane, nodes: int) -> None:
    """A cluster whose every GPU has a pod of somebody else."""
    names = [f"node-{number:04d}" for number in range(nodes)]
    await _create(plane, "/api/v1/nodes", [objects.node(name, gpus=GPUS) for name in names])
    pods = [
        objects.pod(
            f"{name}-{gpu}", namespace="kube-system", gpus=1, scheduler="another", nodeName=name
        )
        for name in names
        for gpu in range(GPUS)
    ]
    await _create(plane, _OTHERS, pods)


def _says(pod: Json) -> str:
    """Why the pod waits, once a decision has said it."""
    for condition in pod["status"].get("conditions", ()):
        if condition["type"] == "PodScheduled" and "GPUs" in condition.get("message", ""):
            return str(condition["message"])
    return ""


async def _told(plane: ControlPlane, daemon: DaemonProcess, tasks: int, gpus: int) -> Told:
    """Create a gang, and watch until all its pods know why they wait."""
    name = f"gang-{tasks}"
    pods = objects.gang(name, tasks, gpus=gpus)
    messages: dict[str, str] = {}
    seen: list[float] = []
    assert daemon.process is not None
    worked = cpu_s(daemon.process.pid)
    async with Client(plane.access) as client:
        version = (await client.get(_PODS)).ok()["metadata"]["resourceVersion"]
        await _create(plane, _PODS, pods)
        began = time.perf_counter()
        async with client.watch(_PODS, resourceVersion=version) as watch:
            while len(messages) < tasks and (event := await watch.next()) is not None:
                pod = event["object"]
                if pod["metadata"]["name"] not in messages and (said := _says(pod)):
                    messages[pod["metadata"]["name"]] = said
                    seen.append(time.perf_counter() - began)
    took = cpu_s(daemon.process.pid) - worked
    message = messages.get(f"{name}-0", "")
    return Told(f"daemon, {tasks} x {gpus} GPUs", (seen[0], seen[-1]), took, message)


def on_cluster(nodes: int) -> list[Told]:
    """The whole way, on a control plane of its own."""
    with control_plane() as plane, tempfile.TemporaryDirectory() as folder:
        asyncio.run(_fill(plane, nodes))
        daemon = DaemonProcess(
            Path(folder) / "data",
            settings={"KUBERNETES__KUBECONFIG": str(plane.kubeconfig())},
            arguments=("--executor", "kubernetes"),
        )
        daemon.start()
        try:
            # The first one waits for the solver process to start, too: it is not counted.
            asyncio.run(_told(plane, daemon, 3, 8))
            return [asyncio.run(_told(plane, daemon, tasks, gpus)) for tasks, gpus in GANGS]
        except TimeoutError:
            sys.stdout.write(daemon.log_tail())
            raise
        finally:
            daemon.stop()


def main() -> int:
    """Run and judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=NODES)
    parser.add_argument("--decisions-only", action="store_true")
    asked = parser.parse_args()
    told = decisions(asked.nodes)
    if not asked.decisions_only:
        try:
            told += on_cluster(asked.nodes)
        except NoControlPlaneError as error:
            sys.stdout.write(f"the cluster's part is skipped: {error}\n")
    for each in told:
        seconds = " to ".join(f"{second:.3f}" for second in each.seconds)
        sys.stdout.write(f"{each.what}: {seconds} s, {each.cpu_s:.3f} s of CPU\n")
        sys.stdout.write(f"  {each.message}\n")
    misses = [miss for each in told for miss in each.misses()]
    for miss in misses:
        sys.stdout.write(f"MISSED: {miss}\n")
    return 1 if misses else 0


if __name__ == "__main__":
    sys.exit(main())
