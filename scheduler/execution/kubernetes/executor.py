"""Makes committed orders real on a cluster: binds the pods of a gang, and looks after them.

The truth about an attempt is its pods, which carry its id from the moment they are bound. What
this object remembers besides (what was told to stop, what was seen whole) only tells apart what
pods cannot say: never bound from bound and gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from scheduler.clock import Clock
from scheduler.errors import HaversackError
from scheduler.execution.kubernetes import labels
from scheduler.execution.kubernetes.binder import Binder, Binding, GangOutcome
from scheduler.execution.kubernetes.cluster import Cluster
from scheduler.execution.kubernetes.evict import Evictor, EvictOutcome
from scheduler.execution.kubernetes.pods import Phase as PodPhase
from scheduler.execution.kubernetes.pods import Pod, PodRef
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

T = TypeVar("T")


class KubernetesExecutor:
    """The `Executor` of a cluster. Its methods block, and are called from threads.

    Args:
        loop: where requests are made.
        cluster: what the API server shows.
        binder: binds.
        evictor: deletes.
        clock: for the instants of observations.
        synced: whether the picture is whole.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        cluster: Cluster,
        binder: Binder,
        evictor: Evictor,
        clock: Clock,
        *,
        synced: Callable[[], bool],
    ) -> None:
        self._loop = loop
        self._cluster = cluster
        self._binder = binder
        self._evictor = evictor
        self._clock = clock
        self._synced = synced
        self._stopped: dict[AttemptId, EndCause] = {}
        self._whole: dict[AttemptId, int] = {}

    def launch(self, order: LaunchOrder) -> Receipt:
        """Bind the gang's pods, all or none. Repeating it completes what was begun."""
        attempt_id = order.attempt_id
        if attempt_id in self._stopped:
            return Receipt(Outcome.REFUSED, "it was told to stop before it was bound")
        if not all(task.member for task in order.tasks):
            return Receipt(Outcome.REFUSED, "jobs without pods of their own cannot be launched yet")
        self._cluster.expect(attempt_id, (gpu for task in order.tasks for gpu in task.gpu_ids))
        bindings = [_binding(order, task) for task in order.tasks]
        result = self._ask(self._binder.bind_gang(bindings))
        match result.outcome:
            case GangOutcome.WHOLE:
                self._whole[attempt_id] = len(bindings)
                return Receipt(Outcome.DONE)
            case GangOutcome.LOST:
                if result.kept:
                    return Receipt(Outcome.DONE, result.message)  # what runs is seen to its end
                self._cluster.release(attempt_id)
                return Receipt(Outcome.REFUSED, result.message)
            case GangOutcome.STALE | GangOutcome.UNSETTLED:
                return Receipt(Outcome.UNKNOWN, result.message)

    def stop(self, order: StopOrder) -> Receipt:
        """Delete the attempt's pods; whatever of it is not bound yet never will be."""
        self._stopped[order.attempt_id] = order.cause
        if not self._synced():
            return Receipt(Outcome.UNKNOWN, "the cluster has not been read yet")
        left = [pod for pod in self._cluster.pods_of(order.attempt_id) if not _ended(pod)]
        troubles = self._ask(self._delete_all(left, order))
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

    def observe(self, attempt_id: AttemptId) -> AttemptObservation:
        """What its pods show.

        An attempt is RUNNING once every pod runs or has run, and over when none is left that may
        still do something: EXITED when every pod that it ever had tells how it ended, else
        VANISHED. While some of its pods are not bound yet, it is UNCLAIMED: it can be completed.
        """
        if not self._synced():
            return self._seen(attempt_id, Phase.UNKNOWN, "the cluster has not been read yet")
        pods = self._cluster.pods_of(attempt_id)
        wanted = max([self._whole.get(attempt_id, 0), *(_tasks(pod) for pod in pods)])
        if not pods:
            if attempt_id in self._whole:
                return self._seen(attempt_id, Phase.VANISHED, "its pods were deleted")
            if attempt_id in self._stopped:
                return self._seen(attempt_id, Phase.ABSENT, "it was stopped before it was bound")
            return self._seen(attempt_id, Phase.UNCLAIMED, "none of its pods is bound")
        left = [pod for pod in pods if not _ended(pod)]
        if len(pods) >= wanted:
            self._whole[attempt_id] = wanted
        if not left:
            if len(pods) >= wanted:
                return self._over(attempt_id, pods)
            return self._seen(attempt_id, Phase.VANISHED, "some of its pods were deleted")
        if attempt_id not in self._whole and attempt_id not in self._stopped:
            missing = wanted - len(pods)
            return self._seen(attempt_id, Phase.UNCLAIMED, f"{missing} of its pods are not bound")
        started = all(pod.phase in (PodPhase.RUNNING, *_TERMINAL) for pod in pods)
        return self._seen(
            attempt_id,
            Phase.RUNNING if started else Phase.STARTING,
            started_at=max(pod.started_at for pod in pods) if started else None,
        )

    def _over(self, attempt_id: AttemptId, pods: Sequence[Pod]) -> AttemptObservation:
        """Every pod has ended and says how."""
        ranks = sorted(pods, key=lambda pod: (int(pod.annotation(labels.RANK) or 0), str(pod.ref)))
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

    def watch(self, attempt_id: AttemptId, changed: Callable[[AttemptId], None]) -> None:
        """Call `changed` whenever one of its pods does."""
        self._cluster.watch(attempt_id, changed)

    def known(self) -> Sequence[AttemptId]:
        """Every attempt that some pod names, or that was told to stop."""
        return tuple(dict.fromkeys((*self._cluster.attempts(), *self._stopped)))

    def forget(self, attempt_id: AttemptId) -> None:
        """Its end is stored."""
        self._stopped.pop(attempt_id, None)
        self._whole.pop(attempt_id, None)
        self._cluster.release(attempt_id)

    def _ask(self, request: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(request, self._loop).result()


_TERMINAL = (PodPhase.SUCCEEDED, PodPhase.FAILED)


def _binding(order: LaunchOrder, task: LaunchTask) -> Binding:
    """One pod's way to its node, with the marks by which it is known again."""
    marks = {
        labels.JOB: str(order.job_id),
        labels.ATTEMPT: str(order.attempt_id),
        labels.EPOCH: str(order.epoch),
        labels.TASKS: str(len(order.tasks)),
        labels.RANK: str(task.task_index),
    }
    if task.gpu_ids:
        marks[labels.GPUS] = ",".join(task.gpu_ids)
    return Binding(PodRef.parse(task.member), task.node_name, marks)


def _ended(pod: Pod) -> bool:
    return pod.phase.terminal


def _ended_at(pod: Pod) -> UtcSeconds:
    return pod.ending.finished_at if pod.ending is not None else UtcSeconds(0.0)


def _tasks(pod: Pod) -> int:
    """How many pods its attempt has; 1 where that is not told."""
    written = pod.annotation(labels.TASKS)
    return int(written) if written.isdecimal() else 1


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
