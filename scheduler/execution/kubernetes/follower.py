"""Keeps the store in step with the cluster: nodes, gangs that wait for us, gangs that are gone.

What was taken in is read back from the store at the start, and every write is idempotent: a
follower may die between any two lines, and its successor goes on where it was.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import structlog

from scheduler.clock import Clock
from scheduler.errors import FencedError, HaversackError
from scheduler.execution.backoff import delays_s
from scheduler.execution.kubernetes.cluster import Cluster, NodeChanges
from scheduler.execution.kubernetes.pods import Pod
from scheduler.model.outside import OutsideGang, OutsideStore
from scheduler.model.quantity import JobId, NodeId

log = structlog.get_logger(__name__)

GATHER_S = 0.02
"""Events come in bursts: so long after the first one, what came is taken in together."""
AGAIN_S = 2.0
"""Gangs with lost members are looked at again after so long, until the store has seen their end."""

_LOST = "some of its pods are gone, were bound by somebody else, or became part of a larger gang"
OWNERS_S = 10.0
"""What says how large a gang is may come, or change, without news of a pod: it is read again."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """Pods that wait, by gang.

    Attributes:
        gangs: complete ones.
        waiting: pods that cannot be placed as they are, and why.
        outgrown: of pods in gangs that have no place yet, those whose gang must be larger now.
    """

    gangs: tuple[OutsideGang, ...]
    waiting: tuple[tuple[Pod, str], ...]
    outgrown: tuple[str, ...] = ()


class Gatherer(Protocol):
    """Finds the gangs among pods."""

    async def gather(self, fresh: Sequence[Pod], taken: frozenset[str]) -> Gathered:
        """The gangs of these waiting pods. Raises HaversackError when owners cannot be read.

        Args:
            fresh: pods that wait and are in no gang yet.
            taken: `str(pod.ref)` of those that are in a gang.
        """
        ...


class Follower:
    """Takes in what the cluster shows. Make it in the event loop.

    Args:
        cluster: the picture; its `told` must call `wake`.
        store: where it goes.
        gatherer: finds gangs.
        clock: for the instants of records.
        report: told of pods that cannot be placed as they are.
        sleep: waits.

    Attributes:
        trouble: why the last step failed; "" when all is well.
        taken_in: gangs taken in so far.
    """

    def __init__(
        self,
        cluster: Cluster,
        store: OutsideStore,
        gatherer: Gatherer,
        clock: Clock,
        *,
        report: Callable[[Sequence[tuple[Pod, str]]], None],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.trouble = ""
        self.taken_in = 0
        self._cluster = cluster
        self._store = store
        self._gatherer = gatherer
        self._clock = clock
        self._report = report
        self._sleep = sleep
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._woken = False
        self._node_ids: dict[str, NodeId] = {}
        self._gang_of: dict[str, str] = {}
        self._members: dict[str, tuple[str, ...]] = {}
        self._jobs: dict[str, JobId] = {}
        self._suspects: set[str] = set()
        self._outgrown: set[str] = set()
        self._waits: dict[str, str] = {}

    def wake(self) -> None:
        """There is news. Call it from any thread."""
        if not self._woken:  # many come at once: one of them is enough
            self._woken = True
            self._loop.call_soon_threadsafe(self._wake.set)

    def job_of(self, member: str) -> JobId | None:
        """The job that this pod (`str(pod.ref)`) was taken in with, until it is seen to end."""
        return self._jobs.get(self._gang_of.get(member, ""))

    def pod_waits(self, namespace: str, name: str) -> str:
        """Why a pod is in no gang that was taken in; "" if it is in one, or is not ours."""
        return self._waits.get(f"{namespace}/{name}", "")

    async def begin(self) -> None:
        """Take in everything there is.

        Raises:
            FencedError: another leader has taken over.
            HaversackError: the store or the cluster does not answer.
        """
        for key, job in (await self._store.open_gangs()).items():
            self._remember(key, job.job_id, job.members)
        self._suspects = {key for key in self._members if not self._whole(key)}
        self._node_ids = dict(await self._store.node_ids())
        # Some may have left while nobody looked.
        self._cluster.give_back(NodeChanges(seen=(), gone=tuple(self._node_ids)))
        await self._step()

    async def run(self) -> None:
        """Take in what changes, until cancelled.

        Raises:
            FencedError: another leader has taken over.
        """
        delays = delays_s()
        while True:
            with suppress(TimeoutError):  # then it is time to look again
                await asyncio.wait_for(self._wake.wait(), self._rest_s())
            await self._sleep(GATHER_S)
            self._woken = False
            self._wake.clear()
            try:
                await self._step()
            except FencedError:
                raise
            except Exception as error:
                self.trouble = f"what the cluster shows was not taken in: {error}"
                if isinstance(error, HaversackError):
                    log.warning("cluster not taken in; trying again", why=str(error))
                else:
                    log.exception("cluster not taken in; trying again")
                await self._sleep(next(delays))
                self._wake.set()
            else:
                self.trouble = ""
                delays = delays_s()

    def _rest_s(self) -> float | None:
        """How long nothing need be done without news."""
        if self._suspects:
            return AGAIN_S
        return OWNERS_S if self._waits else None

    async def _step(self) -> None:
        await self._take_in_nodes()
        if self._cluster.take_pods_changed() or self._waits:
            try:
                await self._take_in_pods()
            except BaseException:
                self._cluster.pods_not_taken()
                raise
        if self._suspects:
            await self._settle_suspects()

    async def _take_in_nodes(self) -> None:
        changes = self._cluster.take_node_changes()
        gone = {self._node_ids[name] for name in changes.gone if name in self._node_ids}
        for node in changes.seen:
            known = self._node_ids.get(node.name)
            if known is not None and known != node.id:
                gone.add(known)  # another machine under the same name
        if not changes.seen and not gone:
            return
        try:
            await self._store.sync_nodes(changes.seen, sorted(gone), self._clock.now())
        except BaseException:
            self._cluster.give_back(changes)
            raise
        for name in changes.gone:
            self._node_ids.pop(name, None)
        self._node_ids.update({node.name: node.id for node in changes.seen})

    async def _take_in_pods(self) -> None:
        waiting = self._cluster.waiting()
        fresh = [pod for pod in waiting if str(pod.ref) not in self._gang_of]
        if fresh:
            found = await self._gatherer.gather(fresh, frozenset(self._gang_of))
            if found.gangs:
                made = await self._store.adopt(found.gangs, self._clock.now())
                for gang in found.gangs:
                    self._remember(gang.key, made[gang.key], gang.members)
            self._report(found.waiting)
            self._form_anew(found.outgrown)
            self._waits = {f"{pod.ref.namespace}/{pod.ref.name}": why for pod, why in found.waiting}
        else:
            self._waits = {}
        for key in self._cluster.take_lost(self._gang_of):
            self._suspects.add(self._gang_of[key])

    async def _settle_suspects(self) -> None:
        """Withdraw waiting gangs that lost or lack a member; wait for the end of those that run."""
        known = await self._store.open_gangs()
        lost = []
        for key in sorted(self._suspects):
            job = known.get(key)
            if job is None:
                self._forget(key)
            elif self._whole(key) and not (job.waiting and key in self._outgrown):
                self._suspects.discard(key)
                self._outgrown.discard(key)
            elif job.waiting:
                lost.append(key)
        if lost:
            await self._store.withdraw(lost, _LOST, self._clock.now())
            for key in lost:
                self._forget(key)

    def reform(self, pods: Iterable[Pod]) -> None:
        """Gangs of these pods that wait are to be formed anew. Call it in the event loop."""
        self._form_anew(str(pod.ref) for pod in pods)
        self.wake()

    def _form_anew(self, members: Iterable[str]) -> None:
        self._outgrown |= {self._gang_of[key] for key in members if key in self._gang_of}
        self._suspects |= self._outgrown

    def _whole(self, key: str) -> bool:
        """Whether every member waits or is bound by us."""
        return all(map(self._cluster.available, self._members[key]))

    def _remember(self, key: str, job_id: JobId, members: Iterable[str]) -> None:
        self.taken_in += 1
        self._members[key] = tuple(members)
        self._jobs[key] = job_id
        self._gang_of.update(dict.fromkeys(self._members[key], key))

    def _forget(self, key: str) -> None:
        self._suspects.discard(key)
        self._outgrown.discard(key)
        self._jobs.pop(key, None)
        for member in self._members.pop(key, ()):
            if self._gang_of.get(member) == key:
                del self._gang_of[member]
        # Those that are left may be part of another gang, and must be told what becomes of them.
        self._cluster.pods_not_taken()
        self.wake()
