"""How a daemon stands 5,000 nodes of 8 GPUs with 20,000 running pods: start, memory, changes.

A fake API server holds objects as large as those of a real one (nodes of 8 KiB, pods of 3.5 KiB);
most pods are another scheduler's. The daemon starts twice, on an empty store and again on what it
has stored, after it has bound some pods itself; each time a pod waits for it. Measured from
outside: seconds from the start of the process to that pod's binding, memory of the daemon and of
its solver process, CPU seconds of both, and the CPU that one changed pod costs all told. On the
store that is left: what a cycle takes to see one changed node.

Exits 1 when the restart takes longer than 10 s to its first binding, the processes together need
more than 600 MB, or the snapshot of a changed node takes more than 50 ms of CPU. Wall times are
those of a machine that also runs the API server: compare CPU.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.daemon import DaemonProcess
from support.folders import quick_folder
from support.kube_objects import training_node, training_pod
from support.kubernetes import objects
from support.kubernetes.client import Json
from support.kubernetes.deployment import daemon_on
from support.kubernetes.fake_server import FakeApiServer, RunningFake, running_fake
from support.kubernetes.ground import Ground
from support.kubernetes.resources import PODS, Target
from support.kubernetes.storage import Change

from scheduler.clock import SystemClock
from scheduler.model.node import Node
from scheduler.model.snapshot import Snapshot
from scheduler.settings import StoreSettings
from scheduler.store.database import Database
from scheduler.store.inventory import sync_changes
from scheduler.store.snapshot import load_delta

START_MAX_S = 10.0
MEMORY_MAX_MB = 600.0
SNAPSHOT_MAX_MS = 50.0
OURS_EACH = 10
"""Of so many pods one is ours."""
CHANGES = 30
CHANGE_GAP_S = 0.3
PATIENCE_S = 300.0
_NAMESPACE = "research-nlp"
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Cost:
    """What processes have used so far, by role: `daemon`, `solver`.

    Attributes:
        cpu_s: seconds of CPU, user and system.
        rss_mb: memory now.
        peak_mb: the most it ever was.
    """

    cpu_s: dict[str, float]
    rss_mb: dict[str, float]
    peak_mb: dict[str, float]


@dataclass(slots=True)
class Bindings:
    """Sees which pods are bound, and when."""

    at_s: dict[str, float] = field(default_factory=dict)

    def __call__(self, change: Change) -> None:
        """A write: is it a binding?"""
        pod = change.now
        if pod is None or pod["kind"] != "Pod" or not pod["spec"].get("nodeName"):
            return
        if pod["spec"]["schedulerName"] == "haversack":
            self.at_s.setdefault(pod["metadata"]["name"], time.monotonic())

    def wait(self, names: list[str], daemon: DaemonProcess) -> float:
        """When the last of them was bound.

        Raises:
            TimeoutError: they were not, with the daemon's log.
        """
        deadline = time.monotonic() + PATIENCE_S
        while not all(name in self.at_s for name in names):
            if time.monotonic() > deadline or not daemon.alive:
                raise TimeoutError(daemon.log_tail())
            time.sleep(0.01)
        return max(self.at_s[name] for name in names)


def populate(fake: FakeApiServer, nodes: int, pods: int) -> None:
    """Nodes, and pods of others that run on them."""
    fake.create(objects.namespace(_NAMESPACE))
    for number in range(nodes):
        fake.stock({"apiVersion": "v1", "kind": "Node", **training_node(number)})
    for number in range(pods - pods // OURS_EACH):
        pod = training_pod(number)
        pod["spec"] |= {
            "nodeName": f"gpu-node-{number % nodes:04d}",
            "schedulerName": "default-scheduler",
        }
        fake.stock({"apiVersion": "v1", "kind": "Pod", **pod})


def waiting(name: str) -> Json:
    """A pod that wants one GPU."""
    return objects.pod(name, namespace=_NAMESPACE, gpus=1, cpu="4", memory="16Gi")


def run_all(fake: FakeApiServer) -> None:
    """Say what kubelets would of those that were bound."""
    for pod in fake.objects(PODS):
        if pod["spec"].get("nodeName") and pod["status"].get("phase") == "Pending":
            fake.stock({**pod, "status": {**pod["status"], "phase": "Running"}})


def costs(daemon: DaemonProcess) -> Cost:
    """What the daemon and its children have used so far."""
    assert daemon.process is not None
    found = Cost({}, {}, {})
    for pid in _family(daemon.process.pid):
        # The daemon itself, its one big child, and small ones that count with the latter.
        role = "daemon" if pid == daemon.process.pid else "solver"
        status = Path(f"/proc/{pid}/status").read_text()
        for told, line in ((found.rss_mb, "VmRSS:"), (found.peak_mb, "VmHWM:")):
            told[role] = told.get(role, 0.0) + int(status.split(line)[1].split()[0]) / 1024
        times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        used = sum(map(int, times[11:13])) / _TICKS_PER_S
        found.cpu_s[role] = found.cpu_s.get(role, 0.0) + used
    return found


def _family(pid: int) -> Iterator[int]:
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            yield from _family(int(child))


@dataclass(frozen=True, slots=True)
class Start:
    """One start of the daemon, up to the first binding."""

    what: str
    bound_s: float
    cost: Cost


@contextmanager
def started(
    what: str, daemon: DaemonProcess, running: RunningFake, bindings: Bindings, starts: list[Start]
) -> Iterator[None]:
    """The daemon, once it has bound the pod that waits for it."""
    name = f"first-{len(starts)}"
    running.do(lambda fake: fake.create(waiting(name)))
    began_s = time.monotonic()
    daemon.start()
    try:
        bound_s = bindings.wait([name], daemon) - began_s
        starts.append(Start(what, bound_s, costs(daemon)))
        yield
    finally:
        daemon.stop()


def small_changes(running: RunningFake, daemon: DaemonProcess, nodes: int) -> dict[str, float]:
    """CPU milliseconds that one pod costs that another scheduler's node is rid of, by process."""

    def remove(number: int) -> Callable[[FakeApiServer], Json]:
        name = f"llama-pretrain-worker-{number * 7 % nodes:05d}"
        target = Target(PODS, _NAMESPACE, name)

        def act(fake: FakeApiServer) -> Json:
            pod = fake.operations.get(target)
            finished = {**pod, "status": {**pod["status"], "phase": "Succeeded"}}
            fake.stock({"apiVersion": "v1", "kind": "Pod", **finished})
            return pod

        return act

    before = costs(daemon).cpu_s
    for number in range(CHANGES):
        running.do(remove(number))
        time.sleep(CHANGE_GAP_S)
    after = costs(daemon).cpu_s
    return {role: (after[role] - before[role]) / CHANGES * 1000 for role in after}


def snapshots(data: Path) -> tuple[float, float]:
    """CPU milliseconds to see the whole store, and to see one changed node more."""
    database = Database.open(StoreSettings(data_dir=data), clock=SystemClock())
    try:
        return asyncio.run(_snapshots(database))
    finally:
        database.close()


async def _snapshots(database: Database) -> tuple[float, float]:
    began_s = time.process_time()
    snapshot = await _seen(database, Snapshot())
    whole_s = time.process_time() - began_s
    taken = []
    for node in list(snapshot.nodes.values())[:CHANGES]:
        less = replace(node.capacity, cpu_milli=node.capacity.cpu_milli - 1)
        await _change(database, replace(node, capacity=less))
        began_s = time.process_time()
        snapshot = await _seen(database, snapshot)
        taken.append(time.process_time() - began_s)
    return whole_s * 1000, statistics.median(taken) * 1000


async def _change(database: Database, node: Node) -> None:
    await database.write(lambda tx: sync_changes(tx, [node], [], now=SystemClock().now()))


async def _seen(database: Database, before: Snapshot) -> Snapshot:
    """What a cycle begins with: the view brought up to date, its arrays and counts with it."""
    delta = await database.read(lambda tx: load_delta(tx, before.revision))
    after = before.apply(delta)
    assert len(after.columns.cpu_held) == len(after.nodes)
    assert after.mix is not None
    return after


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _mb(told: dict[str, float]) -> str:
    return f"{told['daemon']:6.0f} + {told.get('solver', 0.0):4.0f}"


def measure(nodes: int, pods: int, folder: Path) -> list[str]:
    """Measure, print; what was missed."""
    bindings, starts = Bindings(), list[Start]()
    fake = FakeApiServer()
    fake.witness(bindings)
    with running_fake(fake) as running:
        running.do(lambda fake: populate(fake, nodes, pods))
        ground = Ground(running.access, lambda _: running.access, lambda: None, real=False)
        daemon = daemon_on(ground, folder)
        with started("empty store", daemon, running, bindings, starts):
            ours = [f"ours-{number}" for number in range(pods // OURS_EACH)]
            running.do(lambda fake: [fake.create(waiting(name)) for name in ours])
            bindings.wait(ours, daemon)
            running.do(run_all)
        with started("restart", daemon, running, bindings, starts):
            running.do(run_all)
            time.sleep(3.0)
            each = small_changes(running, daemon, nodes)
            steady = costs(daemon)
    whole_ms, one_ms = snapshots(daemon.data_dir)
    _say(f"{nodes} nodes, {pods} pods; daemon + solver process")
    _say(f"{'':14}{'first binding':>15}{'CPU s':>16}{'peak MB':>16}")
    for start in starts:
        cpu = f"{start.cost.cpu_s['daemon']:.1f} + {start.cost.cpu_s.get('solver', 0.0):.1f}"
        _say(f"{start.what:14}{start.bound_s:13.1f} s{cpu:>16}{_mb(start.cost.peak_mb):>16}")
    _say(f"steady: {_mb(steady.rss_mb)} MB, peak {_mb(steady.peak_mb)} MB")
    _say("one changed pod: " + ", ".join(f"{role} {ms:.0f} ms CPU" for role, ms in each.items()))
    _say(f"snapshot: whole {whole_ms:.0f} ms CPU, one changed node {one_ms:.1f} ms CPU")
    failures = []
    if starts[-1].bound_s > START_MAX_S:
        failures.append(f"the first binding took {starts[-1].bound_s:.1f} s")
    peak_mb = sum(steady.peak_mb.values())
    if peak_mb > MEMORY_MAX_MB:
        failures.append(f"{peak_mb:.0f} MB")
    if one_ms > SNAPSHOT_MAX_MS:
        failures.append(f"the snapshot of one changed node took {one_ms:.0f} ms")
    return failures


def main() -> int:
    """Run and judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=5000)
    parser.add_argument("--pods", type=int, default=20_000)
    asked = parser.parse_args()
    with quick_folder() as folder:
        failures = measure(asked.nodes, asked.pods, folder)
    for failure in failures:
        _say(f"MISSED: {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
