"""How many placements a second, and how soon one arrival is decided, on 5,000 nodes of 8 GPUs.

A real store (SQLite, synchronous FULL), the real cycle and the real solver process. First a backlog
of one-GPU jobs is worked off cycle by cycle; each snapshot is then decided once more in this
process, which tells what deciding alone takes. Then three quarters of the GPUs are made busy and
jobs arrive one at a time. A miss of a threshold exits 1.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.builders import NOW, job_spec, placement, task_placement, virtual_node
from support.store import commit, insert_job

from policies.registry import profile_named
from scheduler.clock import SystemClock
from scheduler.cycle import CycleContext, CycleReport, CycleState, run_cycle
from scheduler.decide import decide
from scheduler.ids import SystemIds
from scheduler.model.node import Node
from scheduler.model.plan import Placement
from scheduler.model.ports import DecideResult, Effort
from scheduler.model.quantity import UtcSeconds
from scheduler.model.snapshot import Snapshot, SnapshotDelta
from scheduler.settings import CycleSettings, QueueSettings, StoreSettings
from scheduler.solver_process import SolverProcess
from scheduler.store.cycles import DatabaseCycleStore
from scheduler.store.database import Database, Transaction
from scheduler.store.inventory import sync_nodes
from scheduler.store.lease import acquire
from scheduler.store.snapshot import load_delta

DECIDE_RATE_MIN = 1_000.0
COMMIT_RATE_MIN = 500.0
CYCLE_P99_MAX_S = 1.0
ARRIVAL_P99_MAX_MS = 20.0
GPUS = 8
BUSY = 0.75
FILLERS = (4, 2, 1)
"""GPUs of the jobs that keep a node busy: what remains is in pieces, as on a cluster in use."""
ENTIRE = 10
"""Of so many nodes one stays free as a whole, so that whoever arrives finds a place."""
ARRIVING = (1, 1, 1, 2, 1, 4, 1, 8)
"""GPUs of the jobs that arrive, one after the other."""
SETTINGS = CycleSettings()


@dataclass
class TimedSolver:
    """The solver process, with how long each answer took.

    Attributes:
        waits_s: seconds from request to answer, feeding the snapshot included.
    """

    process: SolverProcess = field(default_factory=SolverProcess)
    waits_s: list[float] = field(default_factory=list)

    async def feed(self, delta: SnapshotDelta, full: Callable[[], SnapshotDelta]) -> None:
        await self.process.feed(delta, full)

    async def decide(
        self,
        delta: SnapshotDelta,
        full: Callable[[], SnapshotDelta],
        *,
        policy: str,
        effort: Effort,
        now: UtcSeconds,
        seed: int,
        hard_limit_s: float,
    ) -> DecideResult:
        started = time.perf_counter()
        result = await self.process.decide(
            delta,
            full,
            policy=policy,
            effort=effort,
            now=now,
            seed=seed,
            hard_limit_s=hard_limit_s,
        )
        self.waits_s.append(time.perf_counter() - started)
        return result


@dataclass(frozen=True)
class Cycle:
    """One cycle that decided: what it saw, did, and took.

    Attributes:
        seconds: from reading the snapshot to the commit, on disk.
        decide_s: of those, waiting for the solver process.
    """

    snapshot: Snapshot
    report: CycleReport
    seconds: float
    decide_s: float


class Bench:
    """A store with nodes, the solver process, and cycles run one after the other."""

    def __init__(self, folder: Path, nodes: int, policy: str) -> None:
        self.clock = SystemClock()
        self.ids = SystemIds(self.clock)
        self.nodes = [virtual_node(f"v{number:05}", GPUS) for number in range(nodes)]
        self.database = Database.open(StoreSettings(data_dir=folder), clock=self.clock)
        self.database.write_sync(lambda tx: sync_nodes(tx, self.nodes, now=NOW))
        self.epoch = self.database.write_sync(
            lambda tx: acquire(tx, "bench", 1e9, self.clock.now())
        )
        self.solver = TimedSolver()
        self.state = CycleState()
        self.context = CycleContext(
            store=DatabaseCycleStore(self.database, self.epoch, self.ids),
            solver=self.solver,
            profile=profile_named(policy),
            effort=SETTINGS.effort,
            seed=SETTINGS.seed,
            hard_limit_s=SETTINGS.hard_limit_s,
            clock=self.clock,
            rejected_plans=folder / "rejected",
        )

    def submit(self, sizes: Sequence[int]) -> list[str]:
        """Put PENDING jobs of so many GPUs each into the store; their ids."""
        now = self.clock.now()
        job_ids = [self.ids.new("j") for _ in sizes]

        def put(tx: Transaction) -> None:
            for job_id, gpus in zip(job_ids, sizes, strict=True):
                insert_job(tx, job_id, job_spec(f"train-{job_id}", gpus=gpus), now=now)

        self.database.write_sync(put)
        return job_ids

    async def cycle(self) -> Cycle:
        """Run one cycle that has to decide."""
        asked = len(self.solver.waits_s)
        started = time.perf_counter()
        self.state, report = await run_cycle(self.context, self.state, force=True)
        seconds = time.perf_counter() - started
        if not report.decided or report.refused or report.rejected:
            raise RuntimeError(f"the cycle did not do its work: {report}")
        return Cycle(self.state.snapshot, report, seconds, sum(self.solver.waits_s[asked:]))

    async def work_off(self, jobs: int) -> list[Cycle]:
        """Cycles until as many jobs are placed."""
        cycles = []
        while jobs:
            cycles.append(await self.cycle())
            jobs -= len(cycles[-1].report.placed)
        return cycles

    async def catch_up(self) -> float:
        """Run one cycle that only reads and feeds, as nobody waits; seconds it took."""
        started = time.perf_counter()
        self.state, _ = await run_cycle(self.context, self.state, force=False)
        return time.perf_counter() - started

    def fill(self, gpus: int) -> None:
        """Make as many GPUs busy in all, by plans that leave most of the others in pieces."""
        view = Snapshot().apply(self.database.read_sync(lambda tx: load_delta(tx, 0)))
        busy = int(view.columns.gpu_held.sum()) // 1000
        wanted = _fillers(view, self.nodes, gpus - busy)
        job_ids = self.submit([len(spots) for _, spots in wanted])
        placements = [
            placement(job_id, task_placement(on, spots))
            for job_id, (on, spots) in zip(job_ids, wanted, strict=True)
        ]
        while placements:
            batch, placements = placements[:1_000], placements[1_000:]
            self._commit(batch)

    def _commit(self, batch: Sequence[Placement]) -> None:
        report = self.database.write_sync(
            lambda tx: commit(tx, batch, epoch=self.epoch, ids=self.ids, now=self.clock.now())
        )
        if report.refused:
            raise RuntimeError(f"a filler was refused: {report.refused[0]}")

    async def close(self) -> None:
        """End the solver process and close the store."""
        await self.solver.process.close()
        self.database.close()


def _fillers(
    view: Snapshot, nodes: Sequence[Node], gpus: int
) -> list[tuple[Node, tuple[int, ...]]]:
    """Jobs of 4, 2 and 1 GPUs on nodes with free ones, round by round, until `gpus` are taken."""
    table = view.columns.table
    free = {
        node.id: [
            index for index in range(GPUS) if view.columns.free.gpu[table.row_of[node.id], index]
        ]
        for node in nodes
    }
    found: list[tuple[Node, tuple[int, ...]]] = []
    while gpus > 0:
        for number, node in enumerate(nodes):
            if number % ENTIRE == 0 and len(free[node.id]) == GPUS:
                continue
            size = FILLERS[number % len(FILLERS)]
            left = free[node.id]
            if size <= min(len(left), gpus):
                found.append((node, tuple(left[:size])))
                del left[:size]
                gpus -= size
    return found


def decided_again(snapshot: Snapshot, policy: str) -> tuple[float, int]:
    """Seconds that deciding takes in this process, its columns at hand, and how much it places."""
    snapshot.columns  # noqa: B018 - the worker carries them from delta to delta
    now = UtcSeconds(max((job.eligible_at for job in snapshot.waiting.values()), default=NOW))
    profile = profile_named(policy)
    started = time.perf_counter()
    for plan in decide(snapshot, profile, SETTINGS.effort, now, SETTINGS.seed):
        last = plan
    return time.perf_counter() - started, len(last.placements)


def _quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _backlog(cycles: Sequence[Cycle], alone: Sequence[tuple[float, int]]) -> bool:
    """Print the rates of a backlog that was worked off; whether they meet their thresholds."""
    placed = sum(len(cycle.report.placed) for cycle in cycles)
    decided = sum(count for _, count in alone) / sum(seconds for seconds, _ in alone)
    committed = placed / sum(cycle.seconds for cycle in cycles)
    lengths = [cycle.seconds for cycle in cycles]
    waits = statistics.median(cycle.decide_s for cycle in cycles)
    p50, p99 = statistics.median(lengths), _quantile(lengths, 0.99)
    _say(f"decide alone            {decided:8.0f} placements/s (at least {DECIDE_RATE_MIN:.0f})")
    _say(f"snapshot to commit      {committed:8.0f} placements/s (at least {COMMIT_RATE_MIN:.0f})")
    _say(
        f"{len(cycles)} cycles of at most {SETTINGS.placements_max} placements: p50 {p50:.3f} s,"
        f" p99 {p99:.3f} s (below {CYCLE_P99_MAX_S:.0f} s), first {lengths[0]:.3f} s;"
        f" of it waiting for the solver process p50 {waits:.3f} s;"
        f" solver killed {sum(cycle.report.killed for cycle in cycles)} times"
    )
    return decided >= DECIDE_RATE_MIN and committed >= COMMIT_RATE_MIN and p99 < CYCLE_P99_MAX_S


async def _arrivals(bench: Bench, count: int) -> bool:
    """Let jobs arrive one at a time, print the latencies; whether they meet their threshold."""
    cycles = []
    for number in range(count):
        bench.submit([ARRIVING[number % len(ARRIVING)]])
        cycles.append(await bench.cycle())
    alone = [
        decided_again(cycle.snapshot, bench.context.profile.name)[0] * 1000 for cycle in cycles
    ]
    answers = [cycle.decide_s * 1000 for cycle in cycles]
    whole = [cycle.seconds * 1000 for cycle in cycles]
    busy = sum(
        len(task.gpu_ids) for live in cycles[0].snapshot.live.values() for task in live.tasks
    )
    _say(f"{count} arrivals, one at a time, {busy} GPUs busy; milliseconds:")
    for what, values in (
        ("decided, in this process", alone),
        ("answered by the solver process", answers),
        ("whole cycle, on disk", whole),
    ):
        p50, p99 = statistics.median(values), _quantile(values, 0.99)
        _say(f"  {what:32} p50 {p50:7.2f}  p99 {p99:7.2f}  max {max(values):7.2f}")
    _say(f"  answered in less than {ARRIVAL_P99_MAX_MS:.0f} ms at p99")
    return _quantile(answers, 0.99) < ARRIVAL_P99_MAX_MS


async def measure(folder: Path, *, nodes: int, jobs: int, arrivals: int, policy: str) -> bool:
    """Run both parts and print them; whether every threshold is met."""
    bench = Bench(folder, nodes, policy)
    try:
        _say(
            f"{nodes} nodes, {nodes * GPUS} GPUs; {jobs} one-GPU jobs wait; policy {policy};"
            f" load of the machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
        )
        await bench.solver.process.start()
        _say(f"reading the idle cluster at the start {await bench.catch_up():.2f} s")
        bench.submit([1] * jobs)
        cycles = await bench.work_off(jobs)
        met = _backlog(cycles, [decided_again(cycle.snapshot, policy) for cycle in cycles])
        bench.fill(int(nodes * GPUS * BUSY))
        await bench.catch_up()
        bench.submit([1])
        await bench.cycle()  # waits until the solver process has taken in all those attempts
        return await _arrivals(bench, arrivals) and met
    finally:
        await bench.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 when every threshold is met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=5_000)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--arrivals", type=int, default=200)
    parser.add_argument("--policy", default=QueueSettings().policy)
    asked = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="haversack-bench-"))
    try:
        met = asyncio.run(
            measure(
                folder,
                nodes=asked.nodes,
                jobs=asked.jobs,
                arrivals=asked.arrivals,
                policy=asked.policy,
            )
        )
    finally:
        shutil.rmtree(folder)
    _say(f"thresholds met: {met}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
