"""One schedule: users and faults from one seed; then the faults stop, and all must settle."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Self

import structlog

from scheduler import failpoints
from scheduler.cycle import CycleReport
from scheduler.model.lifecycle import EndCause
from scheduler.model.plan import Plan
from scheduler.model.snapshot import Snapshot
from scheduler.simulator.faults import daemon as daemons
from scheduler.simulator.faults.auditor import Auditor
from scheduler.simulator.faults.chance import Chance, Fault
from scheduler.simulator.faults.daemon import SimulatedDaemon, Surroundings
from scheduler.simulator.faults.loop import CountingIds, VirtualClock, VirtualLoop
from scheduler.simulator.faults.store import Disk, DiskTrouble
from scheduler.simulator.faults.users import Users
from scheduler.simulator.faults.world import Host, World
from scheduler.virtual import parse_virtual

FAULTS_MIN = 3
STORM_SHARE = 0.6
"""Part of the steps after which the faults stop for the first time."""
JOBS_MAX = 16
CACHE_CHECKED = 0.25
"""Part of the decisions whose snapshot is compared with the store."""
SETTLE_S = 3_600.0
CLUSTERS = ("3x2:H100", "2x4:H100,1x2:A100", "4x2:A100", "5x2:L4", "1x4:H100,2x2:T4")


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a schedule.

    Attributes:
        invariant: the one that was broken, or "".
        message: how.
        steps_min: steps that were asked for.
        steps: things that happened, each followed by a check of all invariants.
        fired: faults by kind.
        settled_s: virtual seconds from the last fault until every job had settled.
        trace: one line a step.
    """

    seed: int
    steps_min: int
    invariant: str
    message: str
    steps: int
    fired: Counter[Fault]
    settled_s: float
    trace: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Equal for equal runs, to the last bit of the trace."""
        return hashlib.sha256("\n".join(self.trace).encode()).hexdigest()

    def replay(self, bug: str | None = None) -> str:
        """The command that plays it again and prints the trace."""
        planted = f" --bug {bug}" if bug else ""
        steps = f"--seed {self.seed} --steps {self.steps_min}"
        return f"python -m scheduler.simulator.faults {steps}{planted}"


class Rig:
    """What schedules of one process share: the disk, and a folder for plans that were rejected."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="haversack-faults-")
        self.disk = Disk()
        self.rejected_plans = Path(self._folder.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()
        self.disk.close()

    def play(self, seed: int, steps: int = 200) -> Result:
        """Play one schedule on a blank database."""
        self.disk.reset()
        loop = VirtualLoop()
        loop.set_exception_handler(lambda _loop, _context: None)
        with _failpoints(), _silence(), _no_collections():
            try:
                schedule = Schedule(seed, steps, self, loop)
                loop.run_until_complete(schedule.play())
            finally:
                _wind_up(loop)
        return schedule.result()


@contextmanager
def _failpoints() -> Iterator[None]:
    """Failpoints ask the simulated daemon that runs into them."""
    real, failpoints.hit = failpoints.hit, _at_point
    try:
        yield
    finally:
        failpoints.hit = real


@contextmanager
def _no_collections() -> Iterator[None]:
    """Collect garbage afterwards: a schedule makes little, and finalizers run at known times."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.collect(1)


@contextmanager
def _silence() -> Iterator[None]:
    """The daemon's log says nothing: hundreds of daemons fail here as they should."""
    before = structlog.get_config()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL), processors=[_drop]
    )
    try:
        yield
    finally:
        structlog.configure(**before)


def _drop(_logger: object, _method: str, _event: structlog.types.EventDict) -> NoReturn:
    raise structlog.DropEvent


def _at_point(name: str) -> None:
    daemon = daemons.CURRENT.get(None)
    if daemon is not None:
        daemon.at_point(name)


def _wind_up(loop: VirtualLoop) -> None:
    """End whatever still runs; it has no effect any more."""
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.wait(tasks))
    loop.close()


class Schedule:
    """Plays one seed."""

    def __init__(self, seed: int, steps: int, rig: Rig, loop: VirtualLoop) -> None:
        self._seed = seed
        self._steps_min = steps
        self._trace: list[str] = []
        self._broken: tuple[str, str] | None = None
        self._stop = asyncio.Event()
        self._changed = asyncio.Event()
        self._loop = loop
        self._chance = Chance(seed, lambda fault, where: self.step(f"FAULT {fault} {where}"))
        self._clock = VirtualClock(loop)
        self._disk = rig.disk
        trouble = DiskTrouble(self._chance)
        nodes = parse_virtual(self._chance.pick(CLUSTERS))
        self._world = World(nodes, self._chance, self._clock, self.step)
        self._around = Surroundings(
            disk=rig.disk,
            trouble=trouble,
            world=self._world,
            chance=self._chance,
            clock=self._clock,
            ids=CountingIds(),
            step=self.step,
            woken=self._wake_all,
            decided=self._meddle,
            finished=self._hear,
            rejected_plans=rig.rejected_plans,
        )
        self._daemons: list[SimulatedDaemon] = []
        self._users = Users(self._around, self._serving)
        self._auditor = Auditor(rig.disk, self._world, self._users.memory)
        self._settled_s = 0.0
        self._vacant = asyncio.Event()

    def result(self) -> Result:
        """What has become of it."""
        invariant, message = self._broken or ("", "")
        return Result(
            self._seed,
            self._steps_min,
            invariant,
            message,
            len(self._trace),
            self._chance.fired,
            self._settled_s,
            tuple(self._trace),
        )

    def step(self, what: str) -> None:
        """Note what happened, then check every invariant."""
        if self._broken is not None:
            return
        self._trace.append(f"{len(self._trace) + 1:5d} {self._loop.time():10.4f}  {what}")
        self._changed.set()
        if not self._disk.driver.in_transaction:
            broken = self._auditor.check(self._daemons)
            if broken is not None:
                self._break(*broken)

    def _break(self, invariant: str, message: str) -> None:
        if self._broken is None:
            self._trace.append(f"        BROKEN {invariant}: {message}")
            self._broken = (invariant, message)
            self._stop.set()

    async def play(self) -> None:
        """The whole schedule; returns early when an invariant breaks."""
        tasks = [
            self._loop.create_task(part)
            for part in (self._supervise(), self._storm_then_settle(), self._stop.wait())
        ]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task in done:
                task.result()

    async def _supervise(self) -> None:
        """Keep a daemon running, as an init system does."""
        while True:
            daemon = SimulatedDaemon(len(self._daemons) + 1, self._around)
            self._daemons.append(daemon)
            self._disk.forget_memories()
            running = self._loop.create_task(self._run(daemon))
            self._vacant = asyncio.Event()
            vacant = self._loop.create_task(self._vacant.wait())
            await asyncio.wait({running, vacant}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.sleep(self._chance.between(0.05, 2.0))

    async def _run(self, daemon: SimulatedDaemon) -> None:
        try:
            ended = await daemon.run()
        except Exception as error:  # noqa: BLE001 - a defect of the daemon, whatever it is
            self._break("I14", f"the daemon ended by itself: {type(error).__name__}: {error}")
        else:
            self.step(f"daemon {daemon.number} is over: {ended}")

    def _serving(self) -> list[SimulatedDaemon]:
        """Daemons that take requests: those that lead, or think so."""
        return [daemon for daemon in self._daemons if daemon.alive and daemon.epoch]

    def _wake_all(self) -> None:
        for daemon in self._daemons:
            daemon.wake()

    # The storm.

    async def _storm_then_settle(self) -> None:
        chance = self._chance
        enough = int(STORM_SHARE * self._steps_min)
        while len(self._trace) < self._steps_min or chance.fired.total() < FAULTS_MIN:
            while len(self._trace) < enough or chance.fired.total() < FAULTS_MIN:
                await asyncio.sleep(chance.wait_s(0.8))
                chance.pick(self._actions)()
            await self._settle()
            chance.calm = False
            enough = self._steps_min

    @property
    def _actions(self) -> list[Callable[[], None]]:
        """What may happen next, as often as it is listed."""
        return [
            *[self._submit] * 6,
            *[self._move] * 5,
            self._trespass,
            *[self._cordon] * 2,
            *[self._strike] * 5,
        ]

    def _submit(self) -> None:
        if len(self._users.memory.submissions) < JOBS_MAX:
            self._users.start(self._users.submit())
        else:
            self._move()

    def _move(self) -> None:
        known = self._users.memory.known_jobs()
        if known:
            job, tenant = self._chance.pick(known[-8:])
            verb = self._chance.pick(("cancel", "hold", "release", "release", "requeue"))
            self._users.start(self._users.move(verb, job, tenant))

    def _trespass(self) -> None:
        known = self._users.memory.known_jobs()
        if known:
            self._users.start(self._users.trespass(*self._chance.pick(known)))

    def _cordon(self) -> None:
        host = self._host()
        gpus = [gpu.id for gpu in host.node.gpus]
        target = self._chance.pick([host.node.id, *gpus])
        cordoned = self._chance.happens(0.4)
        self._users.start(self._users.cordon(target, cordoned=cordoned))

    def _host(self) -> Host:
        return self._chance.pick(list(self._world.hosts.values()))

    def _meddle(self, plan: Plan, snapshot: Snapshot) -> None:
        """While a plan is on its way to its commit."""
        chance, users = self._chance, self._users
        if chance.happens(CACHE_CHECKED) and (drift := self._auditor.drift(snapshot)):
            self._break("I4", drift)
        if not plan.placements:
            return
        placement = chance.pick(plan.placements)
        task = chance.pick(placement.tasks)
        if chance.strikes(Fault.CORDON_RACE, 0.1, task.node_id):
            target = chance.pick([task.node_id, *task.gpu_ids])
            users.start(users.cordon(target, cordoned=True))
        owners = dict(users.memory.known_jobs())
        job = placement.job_id
        if job in owners and chance.strikes(Fault.CANCEL_RACE, 0.1, job):
            verb = chance.pick(("cancel", "cancel", "hold"))
            users.start(users.move(verb, job, owners[job]))

    def _hear(self, epoch: int, revision: int, report: CycleReport) -> None:
        """Whoever a decision leaves waiting must be told why."""
        refused = [job for job, _ in report.refused]
        if not report.failed and (job := self._auditor.untold(epoch, revision, refused)):
            self._break("I14", f"{job} was left waiting without a reason")

    # Faults that come by themselves; the others strike where their call is made.

    def _strike(self) -> None:
        spontaneous = {
            Fault.TASK_DEATH: self._task_death,
            Fault.LAUNCHER_DEATH: self._launcher_death,
            Fault.NODE_DEATH: self._node_death,
            Fault.NODE_NOT_READY: self._node_not_ready,
            Fault.NODE_LEAVES: self._node_leaves,
            Fault.GPU_FAILURE: self._gpu_failure,
            Fault.DISK_FULL: self._disk_full,
            Fault.KILL: self._kill,
            Fault.STALE_LEADER: self._stale_leader,
            Fault.CLOCK_JUMP: self._clock_jump,
            Fault.POISON_JOB: self._poison,
        }
        enabled = [act for fault, act in spontaneous.items() if self._chance.on(fault)]
        self._chance.pick(enabled or [self._task_death])()

    def _task_death(self) -> None:
        running = self._world.alive()
        if running:
            run = self._chance.pick(running)
            attempt = run.order.attempt_id
            self._chance.fire(Fault.TASK_DEATH, attempt)
            cause = self._chance.pick((EndCause.USER, EndCause.INFRASTRUCTURE))
            self._world.end(attempt, cause, 137, message="a rank was killed")

    def _launcher_death(self) -> None:
        running = self._world.alive()
        if running:
            attempt = self._chance.pick(running).order.attempt_id
            self._chance.fire(Fault.LAUNCHER_DEATH, attempt)
            self._world.end(attempt, EndCause.LOST, 0, recorded=False)

    def _node_death(self) -> None:
        self._trouble_with(Fault.NODE_DEATH, self._world.power_off, 30.0)

    def _node_not_ready(self) -> None:
        self._trouble_with(Fault.NODE_NOT_READY, self._world.silence, 20.0)

    def _node_leaves(self) -> None:
        def leave(host: Host) -> None:
            host.listed = False
            if self._chance.happens(0.5):
                self._world.silence(host)

        self._trouble_with(Fault.NODE_LEAVES, leave, 20.0)

    def _gpu_failure(self) -> None:
        def fail(host: Host) -> None:
            self._world.break_gpu(host, self._chance.pick(host.node.gpus).id)

        self._trouble_with(Fault.GPU_FAILURE, fail, 30.0)

    def _trouble_with(self, fault: Fault, strike: Callable[[Host], None], mean_s: float) -> None:
        # Where nothing runs, little can go wrong.
        host = self._chance.pick(self._world.busy() or [self._host()])
        if host.well:
            self._chance.fire(fault, host.node.name)
            strike(host)
            self._loop.call_later(self._chance.wait_s(mean_s), self._world.mend, host)

    def _disk_full(self) -> None:
        trouble = self._around.trouble
        if not trouble.full:
            self._chance.fire(Fault.DISK_FULL)
            trouble.full = True
            self._loop.call_later(self._chance.wait_s(4.0), self._free_disk)

    def _free_disk(self) -> None:
        self._around.trouble.full = False
        self.step("the disk has room again")

    def _kill(self) -> None:
        if alive := self._serving():
            daemon = self._chance.pick(alive)
            self._chance.fire(Fault.KILL, f"daemon {daemon.number}")
            daemon.kill("kill -9")

    def _stale_leader(self) -> None:
        leader = self._daemons[-1]
        if leader.alive and leader.epoch and not leader.frozen:
            self._chance.fire(Fault.STALE_LEADER, f"daemon {leader.number}")
            leader.freeze()
            self._loop.call_later(self._chance.wait_s(10.0), self._thaw, leader)
            self._vacant.set()

    def _thaw(self, daemon: SimulatedDaemon) -> None:
        if daemon.frozen:
            daemon.thaw()
            self.step(f"daemon {daemon.number} goes on, epoch {daemon.epoch}")

    def _clock_jump(self) -> None:
        by_s = self._chance.pick((-300.0, -30.0, 30.0, 3_600.0, 30 * 86_400.0))
        self._clock.wall_error_s += by_s
        self._chance.fire(Fault.CLOCK_JUMP, f"{by_s:+.0f} s")

    def _poison(self) -> None:
        """A stored document that this version cannot read, as after a downgrade."""
        driver = self._disk.driver
        waiting = driver.execute("SELECT id FROM jobs WHERE state = 'PENDING' ORDER BY id")
        jobs = [row[0] for row in waiting]
        if jobs:
            job = self._chance.pick(jobs)
            driver.execute("UPDATE jobs SET document = '{}' WHERE id = ?", (job,))
            self._chance.fire(Fault.POISON_JOB, job)

    # Calm.

    async def _settle(self) -> None:
        """All faults stop; every job must come to its end, or wait for a person."""
        chance, users = self._chance, self._users
        chance.calm = True
        self._around.trouble.full = False
        for daemon in self._daemons:
            self._thaw(daemon)
        for host in self._world.hosts.values():
            if not host.well:
                self._world.mend(host)
        self.step("CALM")
        began_s = self._loop.time()
        while (left := self._auditor.unsettled()) and self._loop.time() - began_s < SETTLE_S:
            if not users.busy:
                for target in self._auditor.cordoned():
                    users.start(users.cordon(target, cordoned=False))
                for job, tenant in self._auditor.held():
                    users.start(users.move("release", job, tenant))
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), 60.0)
            except TimeoutError:
                continue
        self._settled_s = self._loop.time() - began_s
        if left:
            self._break("I14", f"not settled {SETTLE_S:.0f} s after the last fault: {left[0]}")
