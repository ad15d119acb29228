"""The world outside the store: hosts, the processes on them, and what an executor can see of both.

This is the truth that invariants compare the store with. A launch order's command says how its
program behaves: `work <seconds> <exit codes>`, one code for each attempt, the last for all others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from scheduler.clock import Clock
from scheduler.model.execution import (
    AttemptObservation,
    LaunchOrder,
    Outcome,
    Phase,
    RankExit,
    Receipt,
    StopOrder,
)
from scheduler.model.lifecycle import EndCause
from scheduler.model.node import Health, Node
from scheduler.model.quantity import AttemptId, GpuId, NodeId, UtcSeconds
from scheduler.simulator.faults.chance import Chance, Fault

Changed = Callable[[AttemptId], None]


@dataclass(slots=True)
class Host:
    """One machine.

    Attributes:
        node: what it offers when all is well.
        powered: without, nothing runs on it; what ran is dead, which nobody can tell yet.
        reachable: whether anyone outside can see or order anything.
        listed: whether the inventory names it.
        broken: GPUs that have failed.
    """

    node: Node
    powered: bool = True
    reachable: bool = True
    listed: bool = True
    broken: set[GpuId] = field(default_factory=set)

    @property
    def well(self) -> bool:
        """Whether nothing is wrong with it."""
        return self.powered and self.reachable and self.listed and not self.broken

    def as_seen(self) -> Node:
        """What the inventory tells of it."""
        gpus = tuple(
            replace(gpu, health=Health.UNHEALTHY) if gpu.id in self.broken else gpu
            for gpu in self.node.gpus
        )
        return replace(
            self.node, gpus=gpus, health=Health.HEALTHY if self.reachable else Health.UNKNOWN
        )


@dataclass(slots=True)
class Run:
    """The processes of one attempt.

    Attributes:
        order: the order that started it.
        alive: tasks with living processes; empty when it is over.
        started_at: when the whole gang was up.
        end: how it ended, once it has.
        proved: whether its end was seen from outside: from then on no silent host can hide it.
        stopping: whether it was told to stop.
    """

    order: LaunchOrder
    alive: set[int]
    started_at: UtcSeconds | None = None
    end: AttemptObservation | None = None
    proved: bool = False
    stopping: EndCause | None = None

    @property
    def hosts(self) -> frozenset[NodeId]:
        """Where its tasks are."""
        return frozenset(task.node_id for task in self.order.tasks)

    @property
    def gpus(self) -> frozenset[GpuId]:
        """GPUs that its living processes use."""
        return frozenset(
            gpu
            for task in self.order.tasks
            if task.task_index in self.alive
            for gpu in task.gpu_ids
        )


class World:
    """Hosts and processes.

    Attributes:
        hosts: by id.
        runs: everything that ever started, by attempt.
        tombstones: attempts that may never start here, and why.
        highest_epoch: of all orders seen; lower ones are refused.
        changes: rises with every change of anything here.
    """

    def __init__(
        self, nodes: Iterable[Node], chance: Chance, clock: Clock, step: Callable[[str], None]
    ) -> None:
        """Make hosts of `nodes`; `step` is told all that happens."""
        self.hosts = {node.id: Host(node) for node in nodes}
        self.runs: dict[AttemptId, Run] = {}
        self.tombstones: dict[AttemptId, str] = {}
        self.highest_epoch = 0
        self.changes = 0
        self._chance = chance
        self._clock = clock
        self.step = step
        self._watchers: dict[int, Callable[[AttemptId], None]] = {}
        self._forgotten: set[AttemptId] = set()

    # What inventory and executors see.

    def inventory(self) -> tuple[Node, ...]:
        """The nodes as they report themselves."""
        return tuple(host.as_seen() for host in self.hosts.values() if host.listed)

    def known(self) -> tuple[AttemptId, ...]:
        """Attempts with a trace here that was not forgotten, sorted."""
        return tuple(sorted((self.runs.keys() | self.tombstones.keys()) - self._forgotten))

    def forget(self, attempt_id: AttemptId) -> None:
        """The end of the attempt is stored."""
        self._forgotten.add(attempt_id)

    def reachable(self, nodes: Iterable[NodeId]) -> bool:
        """Whether all of these hosts can be reached."""
        return all(self.hosts[node].reachable for node in nodes)

    def observe(self, attempt_id: AttemptId) -> AttemptObservation:
        """What can be proved of an attempt now."""
        if attempt_id in self.tombstones:
            return AttemptObservation(attempt_id, Phase.ABSENT, message=self.tombstones[attempt_id])
        run = self.runs.get(attempt_id)
        if run is None:
            return AttemptObservation(attempt_id, Phase.UNCLAIMED)
        if not run.proved:
            if not self.reachable(run.hosts):
                return AttemptObservation(attempt_id, Phase.UNKNOWN, message="a host is silent")
            run.proved = run.end is not None
        if run.end is not None:
            return run.end
        phase = Phase.STARTING if run.started_at is None else Phase.RUNNING
        return AttemptObservation(attempt_id, phase, started_at=run.started_at)

    def subscribe(self, key: int, told: Changed) -> None:
        """Tell `told` about every change of an attempt, under a key to unsubscribe by."""
        self._watchers[key] = told

    def unsubscribe(self, key: int) -> None:
        """Tell it no more."""
        self._watchers.pop(key, None)

    # What orders do.

    def launch(self, order: LaunchOrder) -> Receipt:
        """Start the attempt, unless it ever was or never may."""
        attempt_id = order.attempt_id
        if attempt_id in self.tombstones:
            return Receipt(Outcome.REFUSED, self.tombstones[attempt_id])
        if attempt_id in self.runs:
            return Receipt(Outcome.DONE)
        if order.epoch < self.highest_epoch:
            return self.refuse(attempt_id, f"epoch {order.epoch} is over")
        if not self.reachable(task.node_id for task in order.tasks):
            return Receipt(Outcome.UNKNOWN, "a host does not answer")
        self.highest_epoch = order.epoch
        self.runs[attempt_id] = Run(order, {task.task_index for task in order.tasks})
        self._later(self._chance.between(0.05, 1.0), self._started, attempt_id)
        self._happened(f"{attempt_id} starts, epoch {order.epoch}")
        return Receipt(Outcome.DONE)

    def refuse(self, attempt_id: AttemptId, why: str) -> Receipt:
        """Forbid an attempt that never started to start."""
        if attempt_id in self.runs:
            return Receipt(Outcome.DONE)
        self.tombstones.setdefault(attempt_id, why)
        self._happened(f"{attempt_id} may never start: {why}")
        return Receipt(Outcome.REFUSED, why)

    def stop(self, order: StopOrder) -> Receipt:
        """See to it that the attempt ends, or never starts."""
        if order.epoch < self.highest_epoch:
            return Receipt(Outcome.REFUSED, f"epoch {order.epoch} is over")
        run = self.runs.get(order.attempt_id)
        if run is None:
            self.highest_epoch = order.epoch
            self.refuse(order.attempt_id, "stopped before it started")
            self.news(order.attempt_id)
            return Receipt(Outcome.DONE)
        if run.end is None and not self.reachable(run.hosts):
            return Receipt(Outcome.UNKNOWN, "a host does not answer")
        self.highest_epoch = order.epoch
        if run.end is None and run.stopping is None:
            run.stopping = order.cause
            grace_s = self._chance.between(0.0, order.grace_s)
            self._later(grace_s, self.end, order.attempt_id, order.cause, 0)
            self._happened(f"{order.attempt_id} is told to stop: {order.cause}")
        return Receipt(Outcome.DONE)

    # What happens by itself, or because something breaks.

    def end(
        self,
        attempt_id: AttemptId,
        cause: EndCause,
        exit_code: int,
        *,
        recorded: bool = True,
        message: str = "",
    ) -> None:
        """All processes of the attempt end now; without a record only their absence tells."""
        run = self.runs[attempt_id]
        if run.end is not None:
            return
        # A record is written by the launcher, beside the first task.
        recorded = recorded and self.hosts[run.order.tasks[0].node_id].powered
        failure = RankExit(0, exit_code, None) if exit_code else None
        run.alive.clear()
        run.end = AttemptObservation(
            attempt_id,
            Phase.EXITED if recorded else Phase.VANISHED,
            started_at=run.started_at,
            ended_at=self._clock.now(),
            cause=cause if recorded else None,
            ranks=(RankExit(0, exit_code, None),) if recorded else (),
            first_failure=failure if recorded else None,
            message=message,
        )
        self._happened(f"{attempt_id} ends: {cause if recorded else 'no record'}")
        self.news(attempt_id)

    def power_off(self, host: Host) -> None:
        """Everything on the host dies; the rest of its gangs follows a little later."""
        host.powered = host.reachable = False
        self._happened(f"{host.node.name} dies")
        for run in list(self.runs.values()):
            dead = {t.task_index for t in run.order.tasks if t.node_id == host.node.id}
            if not dead & run.alive:
                continue
            run.alive -= dead
            lost_launcher = run.order.tasks[0].node_id == host.node.id
            self._later(
                self._chance.between(0.1, 3.0), self._collapse, run.order.attempt_id, lost_launcher
            )
        self._news_of(host)

    def mend(self, host: Host) -> None:
        """The host is well again and shows what really is on it."""
        host.powered = host.reachable = host.listed = True
        host.broken.clear()
        self._happened(f"{host.node.name} is well again")
        self._news_of(host)

    def silence(self, host: Host) -> None:
        """Nobody reaches the host any more; what runs there goes on."""
        host.reachable = False
        self._happened(f"{host.node.name} is silent")
        self._news_of(host)

    def break_gpu(self, host: Host, gpu: GpuId) -> None:
        """The GPU fails, and with it whatever uses it."""
        host.broken.add(gpu)
        self._happened(f"{gpu} fails")
        for attempt_id, run in list(self.runs.items()):
            if gpu in run.gpus:
                self.end(attempt_id, EndCause.INFRASTRUCTURE, 1, message="its GPU failed")

    def news(self, attempt_id: AttemptId) -> None:
        """Hint that an attempt changed, as far as hints arrive."""
        chance = self._chance
        if chance.strikes(Fault.NEWS_LOST, 0.2, attempt_id):
            return
        if chance.strikes(Fault.NEWS_LATE, 0.2, attempt_id):
            self._later(chance.wait_s(5.0), self._tell, attempt_id)
            return
        self._tell(attempt_id)
        if chance.strikes(Fault.NEWS_REPEATED, 0.2, attempt_id):
            self._later(chance.wait_s(1.0), self._tell, attempt_id)

    def busy(self) -> list[Host]:
        """Hosts with living processes."""
        used = {task.node_id for run in self.alive() for task in run.order.tasks}
        return [host for host in self.hosts.values() if host.node.id in used]

    def alive(self) -> Sequence[Run]:
        """Runs with living processes."""
        return [run for run in self.runs.values() if run.alive]

    def _news_of(self, host: Host) -> None:
        for attempt_id, run in self.runs.items():
            if host.node.id in run.hosts and not run.proved:
                self.news(attempt_id)

    def _tell(self, attempt_id: AttemptId) -> None:
        for told in tuple(self._watchers.values()):
            told(attempt_id)

    def _started(self, attempt_id: AttemptId) -> None:
        run = self.runs[attempt_id]
        if run.end is not None or len(run.alive) < len(run.order.tasks):
            return
        run.started_at = self._clock.now()
        self._happened(f"{attempt_id} runs")
        self.news(attempt_id)
        _, seconds, codes = run.order.command
        limit_s = run.order.max_runtime_s
        if limit_s is not None and limit_s < float(seconds):
            self._later(limit_s, self.end, attempt_id, EndCause.TIMED_OUT, 1)
            return
        by_attempt = [int(code) for code in codes.split(",")]
        code = by_attempt[min(run.order.number, len(by_attempt)) - 1]
        cause = EndCause.USER if code else EndCause.COMPLETED
        self._later(float(seconds), self.end, attempt_id, cause, code)

    def _collapse(self, attempt_id: AttemptId, lost_launcher: bool) -> None:  # noqa: FBT001 - timer
        self.end(attempt_id, EndCause.INFRASTRUCTURE, 1, recorded=not lost_launcher)

    def _happened(self, what: str) -> None:
        self.changes += 1
        self.step(what)

    def _later(self, delay_s: float, call: Callable[..., object], *arguments: object) -> None:
        asyncio.get_running_loop().call_later(delay_s, call, *arguments)


class HostExecutor:
    """The Executor port of one daemon: orders and looks, as far as they get through.

    Args:
        key: tells this daemon's watches from others'.
    """

    def __init__(self, world: World, chance: Chance, key: int) -> None:
        self._world = world
        self._chance = chance
        self._key = key
        self._changed: dict[AttemptId, Changed] = {}
        world.subscribe(key, self._told)

    def launch(self, order: LaunchOrder) -> Receipt:
        """As `World.launch`, unless a fault strikes."""
        receipt = self._launch(order)
        self._world.step(f"launch of {order.attempt_id}: {receipt.outcome}")
        return receipt

    def _launch(self, order: LaunchOrder) -> Receipt:
        chance, world, who = self._chance, self._world, order.attempt_id
        self._may_raise(who)
        fresh = who not in world.runs and who not in world.tombstones
        if fresh and chance.strikes(Fault.LAUNCH_REFUSED, 0.15, who):
            return world.refuse(who, "this host will not have it")
        if chance.strikes(Fault.LAUNCH_LOST, 0.15, who):
            return Receipt(Outcome.UNKNOWN, "no answer")
        if chance.strikes(Fault.LAUNCH_LATE, 0.15, who):
            loop = asyncio.get_running_loop()
            loop.call_later(chance.wait_s(20.0), world.launch, order)
            return Receipt(Outcome.UNKNOWN, "no answer")
        receipt = world.launch(order)
        if chance.strikes(Fault.LAUNCH_UNKNOWN, 0.15, who):
            return Receipt(Outcome.UNKNOWN, "no answer")
        return receipt

    def stop(self, order: StopOrder) -> Receipt:
        """As `World.stop`, unless a fault strikes."""
        receipt = self._stop(order)
        self._world.step(f"stop of {order.attempt_id}: {receipt.outcome}")
        return receipt

    def _stop(self, order: StopOrder) -> Receipt:
        chance, who = self._chance, order.attempt_id
        self._may_raise(who)
        if chance.strikes(Fault.STOP_LOST, 0.25, who):
            return Receipt(Outcome.UNKNOWN, "no answer")
        if chance.strikes(Fault.STOP_LATE, 0.25, who):
            loop = asyncio.get_running_loop()
            loop.call_later(chance.wait_s(10.0), self._world.stop, order)
            return Receipt(Outcome.UNKNOWN, "no answer")
        return self._world.stop(order)

    def observe(self, attempt_id: AttemptId) -> AttemptObservation:
        """As `World.observe`."""
        self._may_raise(attempt_id)
        seen = self._world.observe(attempt_id)
        self._world.step(f"look at {attempt_id}: {seen.phase}")
        return seen

    def watch(self, attempt_id: AttemptId, changed: Changed) -> None:
        """Call `changed` at news of the attempt, and at once if there is any already."""
        self._changed[attempt_id] = changed
        if attempt_id in self._world.known():
            changed(attempt_id)

    def known(self) -> Sequence[AttemptId]:
        """As `World.known`."""
        return self._world.known()

    def forget(self, attempt_id: AttemptId) -> None:
        """Watch the attempt no more."""
        self._changed.pop(attempt_id, None)
        self._world.forget(attempt_id)

    def close(self) -> None:
        """The daemon is gone."""
        self._changed.clear()
        self._world.unsubscribe(self._key)

    def _told(self, attempt_id: AttemptId) -> None:
        changed = self._changed.get(attempt_id)
        if changed is not None:
            changed(attempt_id)

    def _may_raise(self, attempt_id: AttemptId) -> None:
        if self._chance.strikes(Fault.EXECUTOR_ERROR, 0.03, attempt_id):
            raise OSError("the host's agent does not answer")
