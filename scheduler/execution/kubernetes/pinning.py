"""Gate and pin: chooses the node of pods that kube-scheduler's own plugins shall judge too.

Such pods are made with our gate and left to kube-scheduler. All members of a gang are pinned first,
each with our marks in the same write and still gated, so that a gang that loses a member meanwhile
has run nowhere. Then the gates are taken away. Neither can be undone: the API lets node affinity
only become stricter, and gates only go. What is given up is deleted, for its maker to make anew.
Source: KEP-3521 (scheduling gates), KEP-3838 (directives of gated pods may become stricter).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

from scheduler import failpoints
from scheduler.errors import FencedError, HaversackError, OverloadedError, UnreachableError
from scheduler.execution.kubernetes.binder import (
    Binder,
    Binding,
    BindOutcome,
    BindResult,
    GangOutcome,
    GangResult,
    is_held,
)
from scheduler.execution.kubernetes.evict import Evictor, EvictOutcome
from scheduler.execution.kubernetes.labels import ATTEMPT, EPOCH, MARKED, PATH, PLACEMENT_GATE
from scheduler.execution.kubernetes.marks import is_released, pin_of
from scheduler.execution.kubernetes.pods import Pod, PodRef, pod_of
from scheduler.execution.kubernetes.server import (
    JSON_PATCH,
    MERGE_PATCH,
    ApiServer,
    Document,
    Lane,
    OutcomeUnknownError,
    RejectedError,
)
from scheduler.model.site import NODE_NAME_FIELD, Operator

_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"


class Pinner:
    """Pins for one leader.

    Args:
        server: the cluster.
        binder: repeats steps, reads what became of them, and undoes gangs, pinned ones as well.
        evictor: takes pods away.
        told: told of each pod that is released: its node, and the path that it takes.
    """

    def __init__(
        self,
        server: ApiServer,
        binder: Binder,
        evictor: Evictor,
        *,
        told: Callable[[PodRef, str, str], None],
    ) -> None:
        self._server = server
        self._binder = binder
        self._evictor = evictor
        self._told = told

    async def pin_gang(self, bindings: Sequence[Binding]) -> GangResult:
        """Pin all and release them to kube-scheduler, or none. Never raises what requests raise.

        Repeating a half-done call completes it, also by another leader with a higher epoch. As soon
        as one member is lost those that were pinned are deleted, unless they run already. WHOLE
        means that all are released; whether kube-scheduler binds them, it says itself.

        Cost: three requests a pod; two for a pod alone, which is pinned and released in one write.
        """
        alone = len(bindings) == 1
        result = await self._binder.together(bindings, self.place if alone else self.pin)
        done = alone and result.members[0].outcome is BindOutcome.BOUND
        if result.outcome is GangOutcome.WHOLE and not done:
            result = await self._binder.together(bindings, self.release)
        if result.outcome is GangOutcome.WHOLE:
            for member in result.members:
                if member.outcome is BindOutcome.BOUND:
                    binding = member.binding
                    self._told(binding.pod, binding.node, binding.annotations[PATH])
        return result

    async def pin(self, binding: Binding) -> BindResult:
        """Write node and marks onto a pod that stays gated, or find that they are there."""
        return await self._binder.persist(binding, partial(self._try_pin, release=False))

    async def place(self, binding: Binding) -> BindResult:
        """The same, and take our gate away in the same write."""
        return await self._binder.persist(binding, partial(self._try_pin, release=True))

    async def release(self, binding: Binding) -> BindResult:
        """Take our gate from a pod that is pinned, or find that it is gone."""
        return await self._binder.persist(binding, self._try_release)

    async def take_back(self, pods: Sequence[Pod], why: str, epoch: int) -> bool:
        """Delete pods of an attempt that cannot become whole, if they are still as they are here.

        Those without a node go first: if one of them has been bound meanwhile, nothing is lost.

        Args:
            pods: all that are left of it.
            why: for people, on the pods.
            epoch: ours.

        Returns:
            Whether all are going; if not, look at them again.

        Raises:
            FencedError: another leader has taken over.
            HaversackError: the API server does not answer.
        """
        if not await self._binder.leads(epoch):
            raise FencedError("another leader has taken over: its pods are left alone")
        for bound in (False, True):
            some = [pod for pod in pods if bool(pod.node_name) is bound]
            if not all(await asyncio.gather(*(self._take_back(pod, why) for pod in some))):
                return False
        return True

    async def _take_back(self, pod: Pod, why: str) -> bool:
        version = await self._evictor.mark(pod.ref, why, version=pod.version)
        if not version:
            return False
        done = await self._evictor.delete(pod.ref, version=version)
        return done.outcome in (EvictOutcome.GOING, EvictOutcome.GONE)

    async def _try_pin(self, binding: Binding, *, release: bool) -> BindResult:
        try:
            raw = await self._binder.read(binding.pod)
        except HaversackError as error:
            return BindResult(binding, BindOutcome.NOT_DONE, str(error))
        found = _looked_at(raw, binding)
        if found is not None:
            return found
        assert raw is not None, "else it was found gone"
        failpoints.hit("pin-before-send")
        patch = pin_patch(raw, binding)
        if release:  # no other gate holds it, as was looked at
            patch["spec"]["schedulingGates"] = None
        result = await self._send(binding, patch, MERGE_PATCH)
        failpoints.hit("pin-after-send")
        return result

    async def _try_release(self, binding: Binding) -> BindResult:
        failpoints.hit("ungate-before-send")
        result = await self._send(binding, release_patch(binding), JSON_PATCH)
        failpoints.hit("ungate-after-send")
        if result.outcome is not BindOutcome.REFUSED:
            return result
        # A test of the patch failed: perhaps an earlier try took effect.
        try:
            raw = await self._binder.read(binding.pod)
        except HaversackError as error:
            return BindResult(binding, BindOutcome.NOT_DONE, str(error))
        if raw is not None and is_held(raw, binding) and is_released(pod_of(raw)):
            return BindResult(binding, BindOutcome.ALREADY_OURS)
        found = _looked_at(raw, binding)
        if found is None or found.outcome is BindOutcome.ALREADY_OURS:
            return result
        return found

    async def _send(self, binding: Binding, patch: object, kind: str) -> BindResult:
        try:
            await self._server.patch(_path(binding.pod), patch, kind=kind, lane=Lane.BIND)
        except RejectedError as error:
            if error.conflict:  # it is read afresh for the next try
                return BindResult(binding, BindOutcome.NOT_DONE, error.message)
            return await self._binder.refused(binding, error)
        except OutcomeUnknownError as error:
            return BindResult(binding, BindOutcome.UNKNOWN, str(error))
        except (UnreachableError, OverloadedError) as error:
            return BindResult(binding, BindOutcome.NOT_DONE, str(error))
        return BindResult(binding, BindOutcome.BOUND)


def _looked_at(raw: Document | None, binding: Binding) -> BindResult | None:
    """What a pod shows of its pin; None if it waits for it."""
    if raw is None:
        return BindResult(binding, BindOutcome.GONE, "there is no such pod any more")
    pod = pod_of(raw)
    leaving = pod.deleting or (pod.phase.terminal and not pod.node_name)
    if is_held(raw, binding) and (pod.node_name or not leaving):
        return BindResult(binding, BindOutcome.ALREADY_OURS, phase=pod.phase)
    if leaving:
        return BindResult(binding, BindOutcome.LEAVING, "it is being deleted", pod.phase)
    if PLACEMENT_GATE not in pod.gates:
        where = f"it is on {pod.node_name}" if pod.node_name else "its gate was taken away"
        why = f"{where}, and that was not done by this attempt"
        return BindResult(binding, BindOutcome.TAKEN, why, pod.phase)
    if pod.held_by:
        return BindResult(binding, BindOutcome.GATED, f"it waits for {', '.join(pod.held_by)}")
    if pin_of(pod) not in ("", binding.node):
        why = f"it is pinned to {pin_of(pod)}, and a pin cannot be moved"
        return BindResult(binding, BindOutcome.TAKEN, why, pod.phase)
    return None


def pin_patch(raw: Document, binding: Binding) -> Document:
    """A merge patch that pins the pod, of this very version, and marks it.

    The terms of its required node affinity are alternatives, so that each gets the pin. One without
    any requirement is met by no node, and may not be changed.
    """
    pin = {"key": NODE_NAME_FIELD, "operator": Operator.IN.value, "values": [binding.node]}
    affinity = (raw["spec"].get("affinity") or {}).get("nodeAffinity") or {}
    terms = (affinity.get(_REQUIRED) or {}).get("nodeSelectorTerms")
    pinned = [_narrowed(term, pin) for term in terms] if terms else [{"matchFields": [pin]}]
    return {
        "metadata": {
            "uid": binding.pod.uid,
            "resourceVersion": raw["metadata"]["resourceVersion"],
            "annotations": dict(binding.annotations),
        },
        "spec": {"affinity": {"nodeAffinity": {_REQUIRED: {"nodeSelectorTerms": pinned}}}},
    }


def _narrowed(term: Document, pin: Document) -> Document:
    fields = term.get("matchFields") or []
    if pin in fields or not (fields or term.get("matchExpressions")):
        return term
    return {**term, "matchFields": [*fields, pin]}


def release_patch(binding: Binding) -> list[Document]:
    """A JSON patch that takes our gate away, if it is the last one and the marks are ours still."""
    marks = {name: binding.annotations[name] for name in (MARKED, ATTEMPT)}
    held = [("/metadata/uid", binding.pod.uid)]
    held += [(f"/metadata/annotations/{_escaped(name)}", value) for name, value in marks.items()]
    epoch = {
        "op": "replace",
        "path": f"/metadata/annotations/{_escaped(EPOCH)}",
        "value": binding.annotations[EPOCH],
    }
    gates = {"path": "/spec/schedulingGates", "value": [{"name": PLACEMENT_GATE}]}
    return [
        *({"op": "test", "path": path, "value": value} for path, value in held),
        {"op": "test", **gates},
        epoch,
        {"op": "remove", "path": gates["path"]},
    ]


def _escaped(name: str) -> str:
    """A name as a step of a JSON pointer (RFC 6901)."""
    return name.replace("~", "~0").replace("/", "~1")


def _path(pod: PodRef) -> str:
    return f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}"
