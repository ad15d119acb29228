"""Makes committed orders real on a cluster: binds the pods of a gang, and looks after them.

The truth about an attempt is its pods, which carry its id from the moment they are bound. What
this object remembers besides (what was told to stop, what was seen whole, what may be under way)
only tells apart what pods cannot say: never bound from bound and gone, or bound and not yet seen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from scheduler.clock import Clock
from scheduler.errors import FencedError, HaversackError, UnreachableError
from scheduler.execution.kubernetes import labels
from scheduler.execution.kubernetes.binder import Binder, Binding, GangOutcome, GangResult
from scheduler.execution.kubernetes.cluster import Cluster, Members
from scheduler.execution.kubernetes.evict import Evictor, EvictOutcome
from scheduler.execution.kubernetes.pods import Phase as PodPhase
from scheduler.execution.kubernetes.pods import Pod, PodRef
from scheduler.execution.kubernetes.raw import count_in
from scheduler.model.execution import (
    AttemptObservation,
    LaunchOrder,
    LaunchTask,
    Outcome,
    Phase,
    RankExit,
    Receipt,
    StopOrder,
)
from scheduler.model.lifecycle import EndCause
from scheduler.model.quantity import AttemptId, UtcSeconds


class KubernetesExecutor:
    """The `Executor` of a cluster.

    Whoever is cancelled while it waits for an answer has given the request up: its outcome is
    unknown, and is looked at by whoever takes the attempt over.

    Args:
        cluster: what the API server shows.
        binder: binds.
        evictor: deletes.
        clock: for the instants of observations.
        synced: whether the picture is whole.
    """

    def __init__(
        self,
        cluster: Cluster,
        binder: Binder,
        evictor: Evictor,
        clock: Clock,
        *,
        synced: Callable[[], bool],
    ) -> None:
        self._cluster = cluster
        self._binder = binder
        self._evictor = evictor
        self._clock = clock
        self._synced = synced
        self._stopped: dict[AttemptId, EndCause] = {}
        self._whole: dict[AttemptId, int] = {}
        self._unsettled: set[AttemptId] = set()
        self._closed = False

    def resume(self, attempt_id: AttemptId, members: Iterable[str], *, whole: bool) -> None:
        """Take over an attempt that was launched, or decided on, before this daemon started.

        Args:
            attempt_id: the attempt.
            members: `namespace/name/uid` of its pods, as far as they are known.
            whole: whether all of them ran already.
        """
        keys = tuple(members)
        self._cluster.expect(attempt_id, keys)
        if whole:
            self._whole[attempt_id] = max(1, len(keys))

    async def launch(self, order: LaunchOrder) -> Receipt:
        """Bind the gang's pods, all or none. Repeating it completes what was begun.

        If the attempt was told to stop meanwhile, what is bound of it is deleted instead.

        Raises:
            FencedError: the cluster has turned us away: another leader has taken over.
            UnreachableError: the daemon is shutting down.
        """
        self._refuse_when_closed()
        if all(task.member for task in order.tasks):
            return await self._bind(order)
        return Receipt(Outcome.REFUSED, "jobs without pods of their own cannot be launched yet")

    async def _bind(self, order: LaunchOrder) -> Receipt:
        """Launch a gang of pods that somebody else made."""
        attempt_id = order.attempt_id
        try:
            bindings = [_binding(order, task) for task in order.tasks]
        except ValueError as error:
            return Receipt(Outcome.REFUSED, str(error))
        self._cluster.expect(attempt_id, (task.member for task in order.tasks))
        # First this, then the look at what was stopped: `stop` looks the other way round.
        self._unsettled.add(attempt_id)
        if attempt_id in self._stopped:
            result = await self._binder.undo_gang(bindings)
        else:
            result = await self._binder.bind_gang(bindings)
        receipt = self._launched(order, result)
        if receipt.outcome is not Outcome.UNKNOWN:
            self._unsettled.discard(attempt_id)
        return receipt

    def _launched(self, order: LaunchOrder, result: GangResult) -> Receipt:
        attempt_id = order.attempt_id
        match result.outcome:
            case GangOutcome.WHOLE:
                self._whole[attempt_id] = len(result.members)
                return Receipt(Outcome.DONE)
            case GangOutcome.LOST:
                if result.kept:
                    return Receipt(Outcome.DONE, result.message)  # what runs is seen to its end
                self._cluster.release(attempt_id)
                return Receipt(Outcome.REFUSED, result.message)
            case GangOutcome.STALE:
                raise FencedError(f"another leader has taken over: {result.message}")
            case GangOutcome.UNSETTLED:
                return Receipt(Outcome.UNKNOWN, result.message)

    async def stop(self, order: StopOrder) -> Receipt:
        """Delete the attempt's pods; whatever of it is not bound yet never will be.

        Raises:
            UnreachableError: the daemon is shutting down.
        """
        self._refuse_when_closed()
        self._stopped[order.attempt_id] = order.cause
        if not self._synced():
            return Receipt(Outcome.UNKNOWN, "the cluster has not been read yet")
        found = self._cluster.members(order.attempt_id)
        left = [pod for pod in found.bound if not pod.phase.terminal]
        if order.attempt_id in self._whole:
            left += found.unbound  # we have bound them; that is not seen yet
        troubles = await self._delete_all(left, order)
        if order.attempt_id in self._unsettled:
            # The launch is asked for until it is settled, and undoes what it finds bound.
            troubles.append("its launch is under way")
        if troubles:
            return Receipt(Outcome.UNKNOWN, "; ".join(troubles))
        return Receipt(Outcome.DONE)

    async def _delete_all(self, pods: Sequence[Pod], order: StopOrder) -> list[str]:
        """Delete pods; what went wrong."""
        told = await asyncio.gather(*(self._delete(pod.ref, order) for pod in pods))
        return [trouble for trouble in told if trouble]

    async def _delete(self, pod: PodRef, order: StopOrder) -> str:
        try:
            if order.cause is EndCause.PREEMPTED:
                done = await self._evictor.preempt(
                    pod, "preempted by Haversack", grace_s=order.grace_s
                )
            else:
                done = await self._evictor.delete(pod, grace_s=order.grace_s)
        except HaversackError as error:
            return f"pod {pod.namespace}/{pod.name}: {error}"
        if done.outcome in (EvictOutcome.GOING, EvictOutcome.GONE):
            return ""
        return f"pod {pod.namespace}/{pod.name}: {done.outcome}: {done.message}"

    async def observe(self, attempt_ids: Sequence[AttemptId]) -> tuple[AttemptObservation, ...]:
        """What their pods show. Asks nobody: O(pods of these attempts).

        An attempt is RUNNING once every pod runs or has run, and over when none is left that may
        still do something: EXITED when every pod that it ever had tells how it ended, else
        VANISHED. While some of its pods are not bound yet, or its launch is not settled, it is
        UNCLAIMED: it can be completed.
        """
        return tuple(map(self._observe, attempt_ids))

    def _observe(self, attempt_id: AttemptId) -> AttemptObservation:
        if not self._synced():
            return self._seen(attempt_id, Phase.UNKNOWN, "the cluster has not been read yet")
        found = self._cluster.members(attempt_id)
        bound = found.bound
        wanted = max([found.total, self._whole.get(attempt_id, 0), *map(_tasks, bound)])
        if bound and len(bound) >= wanted:
            self._whole[attempt_id] = wanted
            self._unsettled.discard(attempt_id)
        whole, stopped = attempt_id in self._whole, attempt_id in self._stopped
        if attempt_id in self._unsettled:
            return self._seen(attempt_id, Phase.UNCLAIMED, "its launch is not settled")
        unseen = found.unbound if whole else ()
        if unseen or any(not pod.phase.terminal for pod in bound):
            if not whole and not stopped:
                missing = wanted - len(bound)
                return self._seen(attempt_id, Phase.UNCLAIMED, f"{missing} pods are not bound")
            return self._alive(attempt_id, bound, seen_all=not unseen)
        return self._none_left(attempt_id, found, wanted)

    def _none_left(self, attempt_id: AttemptId, found: Members, wanted: int) -> AttemptObservation:
        """Nothing of it does anything now."""
        whole, stopped = attempt_id in self._whole, attempt_id in self._stopped
        if found.bound and len(found.bound) >= wanted:
            return self._over(attempt_id, found.bound)
        if whole or (found.bound and (stopped or not found.unbound)):
            return self._seen(attempt_id, Phase.VANISHED, "some of its pods were deleted")
        if stopped:
            return self._seen(attempt_id, Phase.ABSENT, "it was stopped before it was bound")
        missing = wanted - len(found.bound)
        return self._seen(attempt_id, Phase.UNCLAIMED, f"{missing} pods are not bound")

    def _alive(
        self, attempt_id: AttemptId, bound: Sequence[Pod], *, seen_all: bool
    ) -> AttemptObservation:
        """Some of it may still do something."""
        ran = (PodPhase.RUNNING, PodPhase.SUCCEEDED, PodPhase.FAILED)
        started = seen_all and all(pod.phase in ran for pod in bound)
        return self._seen(
            attempt_id,
            Phase.RUNNING if started else Phase.STARTING,
            started_at=max(pod.started_at for pod in bound) if started else None,
        )

    def _over(self, attempt_id: AttemptId, pods: Sequence[Pod]) -> AttemptObservation:
        """Every pod has ended and says how."""
        ranks = sorted(pods, key=lambda pod: (_rank(pod), str(pod.ref)))
        exits = tuple(RankExit(rank, *_exit(pod)) for rank, pod in enumerate(ranks))
        failed = [rank for rank, pod in enumerate(ranks) if pod.phase is not PodPhase.SUCCEEDED]
        first = min(failed, key=lambda rank: _ended_at(ranks[rank]), default=None)
        cause = self._stopped.get(attempt_id)
        if cause is None:
            cause = EndCause.COMPLETED if first is None else _cause(ranks[first])
        return self._seen(
            attempt_id,
            Phase.EXITED,
            "" if first is None else _why(ranks[first]),
            cause=cause,
            first_failure=None if first is None else exits[first],
            started_at=max(pod.started_at for pod in pods),
            ended_at=max(_ended_at(pod) for pod in pods) or self._clock.now(),
            ranks=exits,
        )

    def _seen(
        self, attempt_id: AttemptId, phase: Phase, message: str = "", **told: Any
    ) -> AttemptObservation:
        return AttemptObservation(
            attempt_id=attempt_id,
            phase=phase,
            message=message,
            **({"cause": self._stopped.get(attempt_id)} | told),
        )

    async def watch(
        self, attempt_ids: Sequence[AttemptId], changed: Callable[[AttemptId], None]
    ) -> None:
        """Call `changed` whenever one of their pods does."""
        for attempt_id in attempt_ids:
            self._cluster.watch(attempt_id, changed)

    async def known(self) -> Sequence[AttemptId]:
        """Every attempt that some pod names, or that was told to stop."""
        return tuple(dict.fromkeys((*self._cluster.attempts(), *self._stopped)))

    async def forget(self, attempt_ids: Sequence[AttemptId]) -> None:
        """Their end is stored."""
        for attempt_id in attempt_ids:
            self._stopped.pop(attempt_id, None)
            self._whole.pop(attempt_id, None)
            self._unsettled.discard(attempt_id)
            self._cluster.release(attempt_id)

    def close(self) -> None:
        """Begin nothing more. Whoever waits for an answer is to be cancelled before."""
        self._closed = True

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise UnreachableError("the daemon is shutting down")


def _binding(order: LaunchOrder, task: LaunchTask) -> Binding:
    """One pod's way to its node, with the marks by which it is known again."""
    pod = PodRef.parse(task.member)
    marks = {
        labels.MARKED: pod.uid,
        labels.JOB: str(order.job_id),
        labels.ATTEMPT: str(order.attempt_id),
        labels.EPOCH: str(order.epoch),
        labels.TASKS: str(len(order.tasks)),
        labels.RANK: str(task.task_index),
    }
    if task.gpu_ids:
        marks[labels.GPUS] = ",".join(task.gpu_ids)
    return Binding(pod, task.node_name, marks)


def _ended_at(pod: Pod) -> UtcSeconds:
    return pod.ending.finished_at if pod.ending is not None else UtcSeconds(0.0)


def _tasks(pod: Pod) -> int:
    """How many pods its attempt has; 1 where that is not told."""
    return count_in(pod.annotation(labels.TASKS)) or 1


def _rank(pod: Pod) -> int:
    """Which of them it is; 0 where that is not told."""
    return count_in(pod.annotation(labels.RANK)) or 0


def _exit(pod: Pod) -> tuple[int | None, int | None]:
    """Exit code and signal of a pod that has ended, of its first failure if it had one."""
    exits = pod.ending.exits if pod.ending is not None else ()
    if not exits:
        return (0 if pod.phase is PodPhase.SUCCEEDED else None), None
    worst = next((each for each in exits if each.code), exits[-1])
    return worst.code, worst.signal or None


def _cause(pod: Pod) -> EndCause:
    """Why a failed pod ended: the node's or the cluster's doing, or the program's own."""
    ran = pod.ending is not None and bool(pod.ending.exits)
    return EndCause.INFRASTRUCTURE if pod.disruption or not ran else EndCause.USER


def _why(pod: Pod) -> str:
    ending = pod.ending
    if ending is None:
        return f"pod {pod.ref.name} failed"
    told = ending.message or ending.reason
    bad = next((each for each in ending.exits if each.code), None)
    if bad is not None:
        told = told or f"container {bad.container} ended with {bad.code} ({bad.reason or 'Error'})"
    return f"pod {pod.ref.name}: {told or 'failed'}"
