"""Makes committed orders real on a cluster: binds the pods of a gang, and looks after them.

The truth about an attempt is its pods, which carry its id from the moment they are bound. What
this object remembers besides (what was told to stop, what was seen whole, what may be under way)
only tells apart what pods cannot say: never bound from bound and gone, or bound and not yet seen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from scheduler.clock import Clock
from scheduler.errors import FencedError, HaversackError, UnreachableError
from scheduler.execution.kubernetes import labels
from scheduler.execution.kubernetes.binder import Binder, Binding, GangOutcome, GangResult
from scheduler.execution.kubernetes.cluster import Cluster, Members
from scheduler.execution.kubernetes.endings import end_of
from scheduler.execution.kubernetes.evict import Evictor, EvictOutcome
from scheduler.execution.kubernetes.launching import Launching
from scheduler.execution.kubernetes.marks import attempt_of
from scheduler.execution.kubernetes.pinning import Pinner
from scheduler.execution.kubernetes.pods import Phase as PodPhase
from scheduler.execution.kubernetes.pods import Pod, PodRef
from scheduler.execution.kubernetes.raw import count_in
from scheduler.execution.kubernetes.unmodelled import Path, path_of
from scheduler.model.execution import (
    AttemptObservation,
    LaunchOrder,
    LaunchTask,
    Outcome,
    Phase,
    Receipt,
    StopOrder,
)
from scheduler.model.lifecycle import EndCause
from scheduler.model.quantity import AttemptId, JobId

LaunchedMembers = Callable[[Sequence[AttemptId]], Awaitable[Mapping[AttemptId, frozenset[str]]]]


class KubernetesExecutor:
    """The `Executor` of a cluster.

    Whoever is cancelled while it waits for an answer has given the request up: its outcome is
    unknown, and is looked at by whoever takes the attempt over.

    Args:
        cluster: what the API server shows.
        binder: binds.
        pinner: pins those that kube-scheduler binds.
        evictor: deletes.
        launching: makes pods of jobs that bring none.
        clock: for the instants of observations.
        synced: whether the picture is whole.
        launched: of these attempts those that the store ever ordered the launch of, each with the
            members (`LaunchTask.member`) it was ordered for; raises what reading the store raises.
        at_once: gangs that are bound at once; the others wait for their turn.
    """

    def __init__(
        self,
        cluster: Cluster,
        binder: Binder,
        pinner: Pinner,
        evictor: Evictor,
        launching: Launching,
        clock: Clock,
        *,
        synced: Callable[[], bool],
        launched: LaunchedMembers,
        at_once: int = 64,
    ) -> None:
        self._cluster = cluster
        self._binder = binder
        self._pinner = pinner
        self._evictor = evictor
        self._launching = launching
        self._clock = clock
        self._synced = synced
        self._launched_members = launched
        self._stopped: dict[AttemptId, EndCause] = {}
        self._whole: dict[AttemptId, int] = {}
        self._given_up: dict[AttemptId, str] = {}
        self._unsettled: set[AttemptId] = set()
        self._turns = asyncio.Semaphore(at_once)
        self._closed = False

    def resume(
        self,
        attempt_id: AttemptId,
        members: Iterable[str],
        *,
        whole: bool,
        job_id: JobId | None = None,
    ) -> None:
        """Take over an attempt that was launched, or decided on, before this daemon started.

        Args:
            attempt_id: the attempt.
            members: `namespace/name/uid` of its pods, as far as they are known.
            whole: whether all of them ran already.
            job_id: the job that it runs, if that is known.
        """
        keys = tuple(members)
        self._cluster.expect(attempt_id, keys, job_id=job_id)
        if whole:
            self._whole[attempt_id] = max(1, len(keys))

    async def launch(self, order: LaunchOrder) -> Receipt:
        """Bind the gang's pods, all or none; make them before, if nobody else has.

        Repeating it completes what was begun.

        If the attempt was told to stop meanwhile, what is bound of it is deleted instead.

        Raises:
            FencedError: the cluster has turned us away: another leader has taken over.
            UnreachableError: the daemon is shutting down.
        """
        self._refuse_when_closed()
        if all(task.member for task in order.tasks):
            return await self._bind(order)
        return await self._make_and_bind(order)

    async def _make_and_bind(self, order: LaunchOrder) -> Receipt:
        """Launch a job of our own. If it is refused, no pod of it is left that could be bound."""
        attempt_id = order.attempt_id
        self._cluster.expect(attempt_id, job_id=order.job_id)
        self._unsettled.add(attempt_id)  # first this, as in `_bind`
        if attempt_id in self._stopped:
            receipt = await self._do_not_make(attempt_id)
        else:
            made = await self._launching.make(order)
            receipt = Receipt(made.outcome, made.message)
            if made.tasks:
                receipt = await self._bind(replace(order, tasks=made.tasks))
        if receipt.outcome is Outcome.REFUSED:
            trouble = await self._launching.unmake(order)
            if trouble:
                self._unsettled.add(attempt_id)
                return Receipt(Outcome.UNKNOWN, f"{receipt.message}; {trouble}")
            self._cluster.release(attempt_id)
        if receipt.outcome is not Outcome.UNKNOWN:
            self._unsettled.discard(attempt_id)
        return receipt

    async def _do_not_make(self, attempt_id: AttemptId) -> Receipt:
        """What an earlier try has left of an attempt that was told to stop meanwhile."""
        try:
            left = await self._launching.find(attempt_id)
        except HaversackError as error:
            return Receipt(Outcome.UNKNOWN, str(error))
        why = "its attempt was told to stop"
        if any(pod.takes_room for pod in left):
            return Receipt(Outcome.DONE, why)  # what runs is seen to its end
        return Receipt(Outcome.REFUSED, why)

    async def _bind(self, order: LaunchOrder) -> Receipt:
        """Launch a gang of pods that somebody else made."""
        attempt_id = order.attempt_id
        try:
            bindings = [self._binding(order, task) for task in order.tasks]
        except ValueError as error:
            return Receipt(Outcome.REFUSED, str(error))
        members = (task.member for task in order.tasks)
        self._cluster.expect(attempt_id, members, job_id=order.job_id)
        # First this, then the look at what was stopped: `stop` looks the other way round.
        self._unsettled.add(attempt_id)
        async with self._turns:  # whoever is told to stop while it waits here is never bound
            if attempt_id in self._stopped:
                result = await self._binder.undo_gang(bindings)
            elif any(self._is_left_to_kube_scheduler(task) for task in order.tasks):
                result = await self._pinner.pin_gang(bindings)
            else:
                result = await self._binder.bind_gang(bindings)
        receipt = self._launched(order, result)
        if receipt.outcome is not Outcome.UNKNOWN:
            self._unsettled.discard(attempt_id)
        return receipt

    def _is_left_to_kube_scheduler(self, task: LaunchTask) -> bool:
        pod = self._cluster.pod(task.member)
        return pod is not None and pod.scheduler_name == labels.KUBE_SCHEDULER_NAME

    def _binding(self, order: LaunchOrder, task: LaunchTask) -> Binding:
        """One pod's way to its node. Raises ValueError when the task's member is no pod."""
        pod = self._cluster.pod(task.member)
        return _binding(order, task, Path.DIRECT.value if pod is None else path_of(pod))

    def _launched(self, order: LaunchOrder, result: GangResult) -> Receipt:
        attempt_id = order.attempt_id
        match result.outcome:
            case GangOutcome.WHOLE:
                self._whole[attempt_id] = len(result.members)
                path = result.members[0].binding.annotations[labels.PATH]
                return Receipt(Outcome.DONE, f"path {path}")
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
        try:
            left = await self._left(order.attempt_id)
        except HaversackError as error:
            return Receipt(Outcome.UNKNOWN, str(error))
        troubles = await self._delete_all(left, order)
        if order.attempt_id in self._unsettled:
            # The launch is asked for until it is settled, and undoes what it finds bound.
            troubles.append("its launch is under way")
        if troubles:
            return Receipt(Outcome.UNKNOWN, "; ".join(troubles))
        return Receipt(Outcome.DONE)

    async def _left(self, attempt_id: AttemptId) -> list[Pod]:
        """Its pods that may still do something. Raises what requests raise."""
        if self._launching.knows(attempt_id):
            # Some may be made, and not shown yet.
            return [pod for pod in await self._launching.find(attempt_id) if not pod.over]
        found = self._cluster.members(attempt_id)
        left = [pod for pod in found.bound if not pod.over]
        if attempt_id in self._whole:
            return [*left, *found.unbound]  # we have bound them; that is not seen yet
        return left + [pod for pod in found.unbound if attempt_of(pod) == attempt_id]

    async def _delete_all(self, pods: Sequence[Pod], order: StopOrder) -> list[str]:
        """Delete pods; what went wrong."""
        told = await asyncio.gather(*(self._delete(pod, order) for pod in pods))
        return [trouble for trouble in told if trouble]

    async def _delete(self, pod: Pod, order: StopOrder) -> str:
        # Not `order.grace_s`: what others made has a grace time of its own, which the order does
        # not know, and what we made has its job's. With none at all a pod would be off the books
        # while its processes may still run on the node.
        grace_s = None if pod.grace_s else 1.0
        try:
            if order.cause is EndCause.PREEMPTED:
                done = await self._evictor.preempt(
                    pod.ref, "preempted by Haversack", grace_s=grace_s
                )
            else:
                done = await self._evictor.delete(pod.ref, grace_s=grace_s)
        except HaversackError as error:
            return f"pod {pod.ref.namespace}/{pod.ref.name}: {error}"
        if done.outcome in (EvictOutcome.GOING, EvictOutcome.GONE):
            return ""
        return f"pod {pod.ref.namespace}/{pod.ref.name}: {done.outcome}: {done.message}"

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
        if unseen or any(not pod.over for pod in bound):
            if not whole and not stopped:
                missing = wanted - len(bound)
                return self._seen(attempt_id, Phase.UNCLAIMED, f"{missing} pods are not bound")
            return self._alive(attempt_id, bound, seen_all=not unseen)
        return self._none_left(attempt_id, found, wanted)

    def _none_left(self, attempt_id: AttemptId, found: Members, wanted: int) -> AttemptObservation:
        """Nothing of it does anything now."""
        whole, stopped = attempt_id in self._whole, attempt_id in self._stopped
        if found.lost and not found.bound:
            return self._seen(attempt_id, Phase.ABSENT, "its pods were deleted before they ran")
        ended = [pod for pod in found.bound if pod.phase.terminal]
        if ended and len(ended) >= wanted:
            return self._over(attempt_id, ended)
        if whole or found.lost or (found.bound and (stopped or not found.unbound)):
            why = self._given_up.get(attempt_id, "some of its pods were deleted")
            return self._seen(attempt_id, Phase.VANISHED, why)
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
        end = end_of(pods)
        return self._seen(
            attempt_id,
            Phase.EXITED,
            self._given_up.get(attempt_id) or end.message,
            cause=self._stopped.get(attempt_id, end.cause),
            first_failure=end.first_failure,
            started_at=max(pod.started_at for pod in pods),
            ended_at=end.at or self._clock.now(),
            ranks=end.ranks,
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
        """Every attempt of this store that some pod names, or that was told to stop.

        A mark proves nothing: pods that were bound for another store carry them, and so does what
        people write on pods of theirs. What the store has not launched is usage by others, and
        nothing to mend. Raises what reading the store raises.
        """
        held, others = (self._cluster.attempts(held=each) for each in (True, False))
        # What the store's ids never hold, no database need take for one (NUL, for instance).
        left = {each: self._cluster.members(each) for each in others if each.isprintable()}
        acting = {each: pods for each, found in left.items() if (pods := _acting(found))}
        launched = await self._launched_members(tuple(acting)) if acting else {}
        ended = (each for each in left if each not in acting and self._cluster.own(each))
        known = (each for each in acting if self._is_known(each, acting[each], launched))
        return tuple(dict.fromkeys((*held, *ended, *known, *self._stopped)))

    def _is_known(
        self,
        attempt_id: AttemptId,
        pods: Iterable[Pod],
        launched: Mapping[AttemptId, frozenset[str]],
    ) -> bool:
        """Whether one of these pods was launched for the attempt, or made for it by us."""
        members = launched.get(attempt_id, frozenset())
        if self._cluster.own(attempt_id):
            return "" in members
        return any(str(pod.ref) in members for pod in pods)

    async def forget(self, attempt_ids: Sequence[AttemptId]) -> None:
        """Their end is stored."""
        await self._launching.let_go(attempt_ids)
        for attempt_id in attempt_ids:
            self._stopped.pop(attempt_id, None)
            self._whole.pop(attempt_id, None)
            self._given_up.pop(attempt_id, None)
            self._unsettled.discard(attempt_id)
            self._cluster.release(attempt_id)

    def give_up(self, attempt_id: AttemptId, why: str) -> None:
        """Its pods are about to be deleted, for this reason."""
        self._given_up[attempt_id] = why

    def close(self) -> None:
        """Begin nothing more. Whoever waits for an answer is to be cancelled before."""
        self._closed = True

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise UnreachableError("the daemon is shutting down")


def _binding(order: LaunchOrder, task: LaunchTask, path: str) -> Binding:
    """One pod's way to its node, with the marks by which it is known again."""
    pod = PodRef.parse(task.member)
    marks = {
        labels.MARKED: pod.uid,
        labels.JOB: str(order.job_id),
        labels.ATTEMPT: str(order.attempt_id),
        labels.EPOCH: str(order.epoch),
        labels.TASKS: str(len(order.tasks)),
        labels.RANK: str(task.task_index),
        labels.PATH: path,
    }
    if task.gpu_ids:
        marks[labels.GPUS] = ",".join(task.gpu_ids)
    return Binding(pod, task.node_name, marks)


def _acting(found: Members) -> tuple[Pod, ...]:
    """Those of an attempt's pods that may still do something."""
    return (*(pod for pod in found.bound if not pod.over), *found.unbound)


def _tasks(pod: Pod) -> int:
    """How many pods its attempt has; 1 where that is not told."""
    return count_in(pod.annotation(labels.TASKS)) or 1
