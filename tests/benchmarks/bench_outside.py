"""How many gangs from outside a second pass the store: adopted, committed, claimed, settled.

A real store (SQLite, synchronous FULL) with nodes of 8 GPUs, and one-task gangs. Each step is timed
alone, in the sizes that a daemon works in: what one look at the cluster brings is adopted at once,
plans hold at most `placements_max`, as many launches are claimed as may be in flight, and their
receipts come in together. The rates are those of one core that does nothing else: work divided by
the CPU time of this process. Those by the clock stand beside them, and depend on what else runs and
on the disk. A miss of the threshold exits 1.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.builders import NOW, placement, task_placement, virtual_node
from support.outside import BOTH, DONE, execution_store, outside_gang

from scheduler.clock import SystemClock
from scheduler.execution.settle import Settler
from scheduler.ids import SystemIds
from scheduler.model.node import Node
from scheduler.model.plan import Plan
from scheduler.model.ports import DecisionMeta
from scheduler.model.quantity import JobId
from scheduler.settings import CycleSettings, StoreSettings
from scheduler.store.cycles import DatabaseCycleStore
from scheduler.store.database import Database, Transaction
from scheduler.store.inventory import sync_nodes
from scheduler.store.lease import acquire
from scheduler.store.outside import SqlOutsideStore

GPUS = 8
POD = (("pods", 1),)
"""What each task takes besides, as every pod does."""
PODS_MAX = 110
RATE_MIN = 1_500.0
PLACEMENTS_MAX = CycleSettings().placements_max


@dataclass
class Pass:
    """One pass of gangs through a store of its own.

    Attributes:
        took: CPU seconds and seconds of the clock of each step, by its name.
    """

    folder: Path
    nodes: list[Node]
    gangs: int
    in_flight: int
    clock: SystemClock = field(default_factory=SystemClock)
    took: dict[str, tuple[float, float]] = field(default_factory=dict)

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        worked, began = time.process_time(), time.perf_counter()
        yield
        worked, passed = time.process_time() - worked, time.perf_counter() - began
        before = self.took.get(step, (0.0, 0.0))
        self.took[step] = (before[0] + worked, before[1] + passed)

    async def run(self) -> None:
        """Take every gang from outside to its settled launch."""
        database = Database.open(StoreSettings(data_dir=self.folder), clock=self.clock)
        try:
            await self._carry(database)
        finally:
            database.close()

    async def _carry(self, database: Database) -> None:
        ids = SystemIds(self.clock)

        def prepare(tx: Transaction) -> int:
            sync_nodes(tx, self.nodes, now=NOW)
            return acquire(tx, "bench", 1e9, self.clock.now())

        epoch = await database.write(prepare)
        gangs = [outside_gang(f"k-{number}", extras=POD) for number in range(self.gangs)]
        with self._timed("adopt"):
            made = await SqlOutsideStore(database, epoch, ids).adopt(gangs, self.clock.now())
        head = await database.read(lambda tx: tx.head_revision)
        await self._commit(DatabaseCycleStore(database, epoch, ids), list(made.values()), head)
        execution = execution_store(database, epoch, ids)
        settler = Settler(execution, self.clock)
        settled = 0
        while settled < self.gangs:
            with self._timed("claim"):
                claimed = await execution.claim_intents(BOTH, self.in_flight, self.clock.now())
            with self._timed("settle"):
                await asyncio.gather(*(settler.settle(intent.id, DONE) for intent in claimed))
            settled += len(claimed)

    async def _commit(
        self, store: DatabaseCycleStore, job_ids: Sequence[JobId], decided_on: int
    ) -> None:
        spots = [(on, index) for index in range(GPUS) for on in self.nodes]
        placements = [
            placement(job_id, replace(task_placement(on, (index,)), extras=POD))
            for job_id, (on, index) in zip(job_ids, spots, strict=False)
        ]
        for start in range(0, len(placements), PLACEMENTS_MAX):
            part = tuple(placements[start : start + PLACEMENTS_MAX])
            with self._timed("commit"):
                plan = Plan(snapshot_revision=decided_on, placements=part)
                report = await store.commit(plan, DecisionMeta("bench", 0.0), self.clock.now())
            if report.refused:
                raise RuntimeError(f"a placement was refused: {report.refused[0]}")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def measure(folder: Path, *, nodes: int, gangs: int, in_flight: int, passes: int) -> bool:
    """Print the best rate of each step over some passes; whether all meet the threshold."""
    _say(
        f"{gangs} one-task gangs, {nodes} nodes of {GPUS} GPUs, {in_flight} launches in flight,"
        f" best of {passes}; load of the machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    )
    made = [
        replace(virtual_node(f"v{number:05}", GPUS), extras=(("pods", PODS_MAX),))
        for number in range(nodes)
    ]
    best: dict[str, tuple[float, float]] = {}
    for number in range(passes):
        one = Pass(folder / str(number), made, gangs, in_flight)
        asyncio.run(one.run())
        for step, took in one.took.items():
            best[step] = min(took, best.get(step, took))
    _say(f"{'jobs/s':8} {'one core':>9} {'clock':>9}   at least {RATE_MIN:.0f} on one core")
    for step, (worked, passed) in best.items():
        _say(f"{step:8} {gangs / worked:9.0f} {gangs / passed:9.0f}")
    worked, passed = (sum(each) for each in zip(*best.values(), strict=True))
    _say(f"{'together':8} {gangs / worked:9.0f} {gangs / passed:9.0f}")
    return all(gangs / worked >= RATE_MIN for worked, _ in best.values())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 when the threshold is met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=500)
    parser.add_argument("--gangs", type=int, default=3_000)
    parser.add_argument("--in-flight", type=int, default=256)
    parser.add_argument("--passes", type=int, default=3)
    asked = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="haversack-bench-"))
    try:
        met = measure(
            folder,
            nodes=asked.nodes,
            gangs=asked.gangs,
            in_flight=asked.in_flight,
            passes=asked.passes,
        )
    finally:
        shutil.rmtree(folder)
    _say(f"threshold met: {met}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
