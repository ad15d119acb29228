"""Makes the pods of our own jobs, finds those that an earlier try made, and takes them away again.

A pod's name holds its attempt, and its finalizer keeps the name taken until the attempt's end is
stored. So however often, and by whomever, a launch is repeated, no task of an attempt ever has two
pods: the second creation meets the first one's pod, alive or dead (ADR-0011).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, replace

import structlog

from scheduler import failpoints
from scheduler.errors import FencedError, HaversackError
from scheduler.execution.kubernetes import labels
from scheduler.execution.kubernetes.cluster import Cluster
from scheduler.execution.kubernetes.evict import Evictor, EvictOutcome
from scheduler.execution.kubernetes.manifests import pod_manifest, pod_name, service_manifest
from scheduler.execution.kubernetes.pods import Pod, PodRef, pod_of
from scheduler.execution.kubernetes.server import (
    STRATEGIC_MERGE_PATCH,
    ApiServer,
    Document,
    OutcomeUnknownError,
    RejectedError,
)
from scheduler.model.execution import LaunchOrder, LaunchTask, Outcome
from scheduler.model.quantity import AttemptId

log = structlog.get_logger(__name__)

_REMEDY = "apply deploy/kubernetes/components/jobs, or set HAVERSACK_KUBERNETES__JOB_NAMESPACE"


class _RefusedError(Exception):
    """What is asked for cannot be made; the message says why."""


@dataclass(frozen=True, slots=True)
class Made:
    """What became of an order's pods.

    Attributes:
        outcome: DONE, all are there; REFUSED, they cannot be; UNKNOWN, try again.
        tasks: the order's tasks with the pods that they became; empty unless DONE.
        message: why not.
    """

    outcome: Outcome
    tasks: tuple[LaunchTask, ...] = ()
    message: str = ""


class Launching:
    """Pods of jobs that were submitted to Haversack itself.

    Args:
        server: the cluster.
        cluster: what it shows.
        evictor: deletes.
        namespace: where the pods are.
        image: of jobs that name none.
        leads: whether the cluster knows of no later leader than the one of this epoch; raises what
            requests raise.
    """

    def __init__(
        self,
        server: ApiServer,
        cluster: Cluster,
        evictor: Evictor,
        *,
        namespace: str,
        image: str,
        leads: Callable[[int], Awaitable[bool]],
    ) -> None:
        self._server = server
        self._cluster = cluster
        self._evictor = evictor
        self._namespace = namespace
        self._image = image
        self._leads = leads
        self._pods = f"/api/v1/namespaces/{namespace}/pods"
        self._services = f"/api/v1/namespaces/{namespace}/services"
        self._made: set[AttemptId] = set()

    def knows(self, attempt_id: AttemptId) -> bool:
        """Whether its pods are, or may be, of our making."""
        return attempt_id in self._made or bool(self._cluster.own(attempt_id))

    async def make(self, order: LaunchOrder) -> Made:
        """Make the order's pods and their Service, or find them made. None of them is bound.

        Cost: a request each, at most `Lane.WRITE`'s number at once.
        """
        self._made.add(order.attempt_id)
        try:
            manifests = [self._manifest(order, task) for task in order.tasks]
            first = await self._create(self._pods, manifests[0], order)
            failpoints.hit("pods-first-made")
            owned = [self._manifest(order, task, owner=first) for task in order.tasks[1:]]
            service = service_manifest(order, self._namespace, first)
            rest = await _all(
                self._create(self._services, service, order),
                *(self._create(self._pods, manifest, order) for manifest in owned),
            )
        except _RefusedError as error:
            return Made(Outcome.REFUSED, message=str(error))
        except HaversackError as error:
            return Made(Outcome.UNKNOWN, message=str(error))
        failpoints.hit("pods-made")
        pods = [pod_of(raw) for raw in (first, *rest[1:])]
        for pod in pods:
            if self._cluster.pod(str(pod.ref)) is None:
                # Not shown yet: what is missing from the picture would look as if it were gone.
                self._cluster.pod_seen(pod)
        tasks = zip(order.tasks, pods, strict=True)
        return Made(Outcome.DONE, tuple(replace(task, member=str(pod.ref)) for task, pod in tasks))

    def _manifest(
        self, order: LaunchOrder, task: LaunchTask, owner: Document | None = None
    ) -> Document:
        gpu_resource = self._cluster.gpu_resource(task.node_name)
        if gpu_resource is None:
            raise _RefusedError(f"node {task.node_name} has left the cluster")
        if task.gpu_ids and not gpu_resource:
            raise _RefusedError(f"node {task.node_name} offers no GPUs any more")
        image = order.image or self._image
        if not image:
            raise _RefusedError(
                "the job names no image, and there is no default: set HAVERSACK_KUBERNETES__IMAGE"
            )
        return pod_manifest(
            order, task, self._namespace, image=image, gpu_resource=gpu_resource, owner=owner
        )

    async def _create(self, path: str, body: Document, order: LaunchOrder) -> Document:
        """The object, made now or by an earlier try.

        Raises:
            _RefusedError: the server will not have it, or somebody else's has its name.
            HaversackError: nobody knows.
        """
        name = body["metadata"]["name"]
        failpoints.hit("create-before-send")
        try:
            made = await self._server.post(path, body)
        except RejectedError as error:
            if not error.conflict:
                raise self._refusal(error, name) from error
        except OutcomeUnknownError as error:
            log.info("looking whether it was made", name=name, why=str(error))
        else:
            failpoints.hit("create-after-send")
            return made
        found = await self._server.get(f"{path}/{name}")
        _check_ours(found, body, order)
        return found

    def _refusal(self, error: RejectedError, name: str) -> Exception:
        if error.unauthorized:
            return error
        if error.missing or error.lacks_rights:
            return _RefusedError(f"{name} cannot be made: {error.message}; {_REMEDY}")
        return _RefusedError(f"{name} cannot be made: {error.message}")

    async def find(self, attempt_id: AttemptId) -> tuple[Pod, ...]:
        """Its pods as the server has them now. Raises what requests raise."""
        query = {"labelSelector": f"{labels.ATTEMPT}={attempt_id}"}
        listed = await self._server.list(self._pods, query)
        return tuple(map(pod_of, listed["items"]))

    async def unmake(self, order: LaunchOrder) -> str:
        """Delete those of its pods that have no node, and its Service; what went wrong, or "".

        The order matters, as in `Binder`: read the pods, see that we still lead, delete them as
        they were read. Whoever paused before that and was succeeded leaves them to the new leader,
        who completes this launch with them; and one that was bound meanwhile stays.

        Raises:
            FencedError: another leader has taken over.
        """
        attempt_id = order.attempt_id
        try:
            found = await self.find(attempt_id)
            leads = await self._leads(order.epoch)
            stay = await self._remove(attempt_id, found) if leads else 0
        except HaversackError as error:
            return str(error)
        if not leads:
            raise FencedError("another leader has taken over: its pods are left alone")
        if not found:
            self._made.discard(attempt_id)
        return f"{stay} pods changed meanwhile" if stay else ""

    async def _remove(self, attempt_id: AttemptId, found: Sequence[Pod]) -> int:
        """Delete the Service, and pods without a node; how many have changed, and stay."""
        pods = [pod for pod in found if pod.waiting]
        gone = await asyncio.gather(
            *(self._evictor.delete(pod.ref, version=pod.version) for pod in pods)
        )
        await self._delete_service(attempt_id)
        return sum(each.outcome is EvictOutcome.CHANGED for each in gone)

    async def let_go(self, attempt_ids: Iterable[AttemptId]) -> None:
        """Their end is stored: let the cluster remove what was deleted of them.

        What fails is logged, and asked for again: whoever compares the cluster with the store meets
        these attempts there until their pods are gone.
        """
        for attempt_id in attempt_ids:
            self._made.discard(attempt_id)
            kept = [pod.ref for pod in self._cluster.own(attempt_id) if pod.kept]
            if not kept:
                continue
            try:
                await self._delete_service(attempt_id)
                await asyncio.gather(*map(self._free, kept))
            except HaversackError as error:
                log.warning("pods are not let go yet", attempt=attempt_id, why=str(error))

    async def _free(self, pod: PodRef) -> None:
        """Take our finalizer off."""
        change = {
            "metadata": {
                "uid": pod.uid,
                "$deleteFromPrimitiveList/finalizers": [labels.EXIT_STATUS],
            }
        }
        try:
            await self._server.patch(f"{self._pods}/{pod.name}", change, kind=STRATEGIC_MERGE_PATCH)
        except RejectedError as error:
            # Gone, or the name is another pod's by now.
            if not (error.missing or error.conflict or error.invalid):
                raise

    async def _delete_service(self, attempt_id: AttemptId) -> None:
        try:
            await self._server.delete(f"{self._services}/{attempt_id}")
        except RejectedError as error:
            if not error.missing:
                raise


async def _all(*requests: Coroutine[None, None, Document]) -> list[Document]:
    """What they answer, once all have; raises what the first one that failed has raised.

    None is left under way: whoever takes away what was made must meet all of it.
    """
    answers = await asyncio.gather(*requests, return_exceptions=True)
    done = [answer for answer in answers if not isinstance(answer, BaseException)]
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return done


def _check_ours(found: Document, body: Document, order: LaunchOrder) -> None:
    """Raises _RefusedError unless it is what `body` makes, and there to stay."""
    metadata, wanted = found["metadata"], body["metadata"]
    name = metadata["name"]
    if (metadata.get("labels") or {}).get(labels.ATTEMPT) != order.attempt_id:
        raise _RefusedError(f"somebody else's {found.get('kind', 'object')} has the name {name}")
    owners = {each.get("uid") for each in metadata.get("ownerReferences") or ()}
    if not {each["uid"] for each in wanted.get("ownerReferences", ())} <= owners:
        raise _RefusedError(f"{name} belongs to another {pod_name(order, 0)}")
    if metadata.get("deletionTimestamp"):
        raise _RefusedError(f"{name} was deleted before its gang was whole")
