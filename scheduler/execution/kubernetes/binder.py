"""Binds pods to nodes: one by one idempotently, gangs as a whole.

A binding says which pod (uid) and carries our marks, which land on the pod in the same write as
its node. Therefore a pod can always be asked whether a binding of ours took effect, by whomever
and however long ago it was sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import structlog

from scheduler import failpoints
from scheduler.errors import HaversackError, OverloadedError, UnreachableError
from scheduler.execution.kubernetes.evict import Evictor, EvictOutcome
from scheduler.execution.kubernetes.fence import LEASE, Fence, LostLeaseError, is_stale
from scheduler.execution.kubernetes.labels import EPOCH, PATH
from scheduler.execution.kubernetes.marks import pin_of
from scheduler.execution.kubernetes.pods import Phase, PodRef, pod_of
from scheduler.execution.kubernetes.server import (
    ApiServer,
    Document,
    Lane,
    OutcomeUnknownError,
    RejectedError,
)

log = structlog.get_logger(__name__)

_TRIES = 4
_GAP_S = 0.1
_UNDO_TRIES = 8
_NO_IDENTITY = (EPOCH, PATH)
"""Marks that may differ from one try to the next: another leader may repeat a binding."""
_UNDO_REASON = "a member of its gang could not be bound, and a gang starts whole or not at all"


class BindOutcome(StrEnum):
    """What is known of a binding."""

    BOUND = "bound"
    ALREADY_OURS = "already-ours"
    """It has our node and our marks: an earlier try of ours took effect."""
    TAKEN = "taken"
    """It is bound, but not by this attempt, or elsewhere."""
    GONE = "gone"
    """There is no such pod any more."""
    LEAVING = "leaving"
    """It is being deleted, or has ended without ever having a node."""
    GATED = "gated"
    """It has scheduling gates."""
    REFUSED = "refused"
    """Somebody's admission policy forbids it."""
    REFUSED_STALE = "refused-stale"
    """The fence refused it: another leader has taken over."""
    NOT_DONE = "not-done"
    """It is not bound; trying again may help."""
    UNKNOWN = "unknown"
    """Perhaps bound, now or in a moment: repeat the very same binding to find out."""


_HELD = (BindOutcome.BOUND, BindOutcome.ALREADY_OURS)
_LOST = (
    BindOutcome.TAKEN,
    BindOutcome.GONE,
    BindOutcome.LEAVING,
    BindOutcome.GATED,
    BindOutcome.REFUSED,
)


_BOUND_NOW = (BindOutcome.BOUND, BindOutcome.UNKNOWN)


class _Undone(StrEnum):
    """What became of one member of a lost gang."""

    NOTHING = "nothing"
    DELETED = "deleted"
    KEPT = "kept"
    STALE = "stale"
    NOT_YET = "not-yet"


@dataclass(frozen=True, slots=True)
class Binding:
    """One pod's way to its node.

    Attributes:
        annotations: merged into the pod: job, attempt, epoch, path, GPUs. All but epoch and path
            must be the same whenever the binding is repeated: by them it is known again.
    """

    pod: PodRef
    node: str
    annotations: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class BindResult:
    """What became of one binding; `message` says why when the pod is not held.

    Attributes:
        phase: the pod's, where it had to be read.
    """

    binding: Binding
    outcome: BindOutcome
    message: str = ""
    phase: str = ""


Step = Callable[[Binding], Awaitable[BindResult]]
"""Something that is done to one pod of a gang. It raises nothing, and repeating it is safe."""


class GangOutcome(StrEnum):
    """What became of a gang."""

    WHOLE = "whole"
    LOST = "lost"
    """A member cannot be bound. The others were undone, except those that `kept` names."""
    STALE = "stale"
    """Another leader has taken over; nothing was undone, for it may be the new one's by now."""
    UNSETTLED = "unsettled"
    """Neither whole nor lost: repeat it."""


@dataclass(frozen=True, slots=True)
class GangResult:
    """What became of a gang and of each member, in the order given.

    Attributes:
        undone: members that were bound and are now being deleted, or gone.
        kept: members that ran already, from an earlier try: whoever ends the attempt stops them.
    """

    outcome: GangOutcome
    members: tuple[BindResult, ...]
    undone: tuple[PodRef, ...] = ()
    kept: tuple[PodRef, ...] = ()

    @property
    def message(self) -> str:
        """The first member's trouble, with its name; "" if there is none."""
        for member in sorted(self.members, key=lambda each: each.outcome not in _LOST):
            if member.outcome not in _HELD:
                pod = member.binding.pod
                return f"pod {pod.namespace}/{pod.name}: {member.outcome}: {member.message}"
        return ""


class Binder:
    """Binds for one leader.

    Args:
        server: the cluster.
        evictor: takes members of a lost gang away again.
        fence: where the cluster's epoch is read; None when bindings are not fenced.
        in_flight: bindings of one gang under way at once.
        sleep: waits before a new try.
    """

    def __init__(
        self,
        server: ApiServer,
        evictor: Evictor,
        *,
        fence: Fence | None,
        in_flight: int = 32,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._server = server
        self._evictor = evictor
        self._fence = fence
        self._in_flight = in_flight
        self._sleep = sleep

    async def bind(self, binding: Binding) -> BindResult:
        """Bind one pod, or find that it is bound already. Never raises what requests raise.

        Repeating it is safe, also by another leader with a higher epoch.
        """
        return await self.persist(binding, self._try)

    async def persist(self, binding: Binding, step: Step) -> BindResult:
        """Take a step with one pod until it is known what came of it, or some tries have failed."""
        result = BindResult(binding, BindOutcome.NOT_DONE)
        in_doubt = False
        for attempt in range(_TRIES):
            if attempt:
                await self._sleep(_GAP_S * 2.0 ** (attempt - 1))
            result = await step(binding)
            in_doubt = in_doubt or result.outcome is BindOutcome.UNKNOWN
            if result.outcome not in (BindOutcome.NOT_DONE, BindOutcome.UNKNOWN):
                return result
        # A request that was cut off may still be under way to the server.
        return replace(result, outcome=BindOutcome.UNKNOWN) if in_doubt else result

    async def bind_gang(self, bindings: Sequence[Binding]) -> GangResult:
        """Bind all, or leave none of them bound by us.

        Repeating a half-done call completes it. As soon as one member is lost, no further one is
        tried, and those bound are deleted, unless they ran before this call.
        """
        return await self.together(bindings, self.bind)

    async def together(self, bindings: Sequence[Binding], step: Step) -> GangResult:
        """Take a step with all members, or undo what was done of the gang.

        As soon as one member is lost the step is not begun with further ones.
        """
        members = await self._all(bindings, step)
        outcomes = {member.outcome for member in members}
        if BindOutcome.REFUSED_STALE in outcomes:
            return GangResult(GangOutcome.STALE, members)
        if outcomes <= set(_HELD):
            return GangResult(GangOutcome.WHOLE, members)
        if outcomes.isdisjoint(_LOST):
            return GangResult(GangOutcome.UNSETTLED, members)
        return await self._undo(members)

    async def undo_gang(self, bindings: Sequence[Binding]) -> GangResult:
        """Delete those that these bindings bound, unless they run already: LOST once it is done."""
        why = "its attempt was told to stop"
        return await self._undo(
            tuple(BindResult(binding, BindOutcome.NOT_DONE, why) for binding in bindings)
        )

    async def _all(self, bindings: Sequence[Binding], step: Step) -> tuple[BindResult, ...]:
        slots = asyncio.Semaphore(self._in_flight)
        lost = asyncio.Event()

        async def one(binding: Binding) -> BindResult:
            async with slots:
                if lost.is_set():
                    return BindResult(
                        binding, BindOutcome.NOT_DONE, "not tried: another member is lost"
                    )
                result = await step(binding)
                if result.outcome in _LOST or result.outcome is BindOutcome.REFUSED_STALE:
                    lost.set()
                return result

        return tuple(await asyncio.gather(*map(one, bindings)))

    async def _try(self, binding: Binding) -> BindResult:
        """Send it once and find out what it did."""
        pod = binding.pod
        path = f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}/binding"
        failpoints.hit("bind-before-send")
        try:
            await self._server.post(path, _body(binding), lane=Lane.BIND)
        except RejectedError as error:
            return await self.refused(binding, error)
        except OutcomeUnknownError as error:
            return await self._look(binding, BindOutcome.UNKNOWN, str(error))
        except (UnreachableError, OverloadedError) as error:
            return BindResult(binding, BindOutcome.NOT_DONE, str(error))
        failpoints.hit("bind-after-send")
        return BindResult(binding, BindOutcome.BOUND)

    async def refused(self, binding: Binding, error: RejectedError) -> BindResult:
        """What a refusal says of the pod; after a conflict it is read."""
        if error.missing:
            return BindResult(binding, BindOutcome.GONE, error.message)
        if error.conflict:
            return await self._look(binding, BindOutcome.NOT_DONE, error.message)
        if is_stale(error) or (self._fence is not None and self._fence.refused(error)):
            return await self._stale(binding, error)
        if error.unauthorized or error.lacks_rights:
            # That is no fault of this pod, and no reason to give up its gang.
            return BindResult(binding, BindOutcome.NOT_DONE, error.message)
        return BindResult(binding, BindOutcome.REFUSED, error.message)

    async def _stale(self, binding: Binding, error: RejectedError) -> BindResult:
        """The fence refused it: are we stale, or has an API server not seen our epoch yet?"""
        if self._fence is None:
            return BindResult(binding, BindOutcome.NOT_DONE, error.message)
        try:
            at = await self._fence.read_epoch()
        except HaversackError as unread:
            return BindResult(binding, BindOutcome.NOT_DONE, str(unread))
        stale = at > int(binding.annotations.get(EPOCH) or 0)
        outcome = BindOutcome.REFUSED_STALE if stale else BindOutcome.NOT_DONE
        return BindResult(binding, outcome, error.message)

    async def _look(self, binding: Binding, otherwise: BindOutcome, why: str) -> BindResult:
        """Read the pod to see what became of a binding.

        Args:
            binding: the one in question.
            otherwise: what it is when the pod is as if nothing had happened.
            why: what made us look.
        """
        try:
            raw = await self.read(binding.pod)
        except HaversackError as error:
            # Only a pod that we have read proves that nothing happened.
            return BindResult(binding, BindOutcome.UNKNOWN, f"{why}; then: {error}")
        if raw is None:
            return BindResult(binding, BindOutcome.GONE, why)
        phase = str((raw.get("status") or {}).get("phase") or "")
        spec = raw.get("spec") or {}
        if is_held(raw, binding):
            return BindResult(binding, BindOutcome.ALREADY_OURS, phase=phase)
        if spec.get("nodeName"):
            where = f"it is on {spec['nodeName']} and was not bound by this attempt"
            return BindResult(binding, BindOutcome.TAKEN, where, phase)
        if raw["metadata"].get("deletionTimestamp") or phase in (Phase.SUCCEEDED, Phase.FAILED):
            return BindResult(binding, BindOutcome.LEAVING, why, phase)
        if spec.get("schedulingGates"):
            gates = ", ".join(str(gate.get("name")) for gate in spec["schedulingGates"])
            return BindResult(binding, BindOutcome.GATED, f"it waits for {gates}", phase)
        return BindResult(binding, otherwise, why, phase)

    async def read(self, pod: PodRef) -> Document | None:
        """The pod, or None if it, this very one, is gone. Raises what requests raise."""
        try:
            raw = await self._server.get(f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}")
        except RejectedError as error:
            if error.missing:
                return None
            raise
        return raw if raw["metadata"]["uid"] == pod.uid else None

    # Undoing

    async def _undo(self, members: tuple[BindResult, ...]) -> GangResult:
        """Delete the bound members of a lost gang; UNSETTLED if that did not work for all."""
        slots = asyncio.Semaphore(self._in_flight)

        async def one(member: BindResult) -> _Undone:
            async with slots:
                return await self._undo_one(member)

        ends = await asyncio.gather(*map(one, members))
        ended = list(zip(members, ends, strict=True))
        outcome = GangOutcome.LOST
        if _Undone.NOT_YET in ends:
            outcome = GangOutcome.UNSETTLED
        if _Undone.STALE in ends:
            outcome = GangOutcome.STALE
        return GangResult(
            outcome,
            members,
            undone=tuple(each.binding.pod for each, end in ended if end is _Undone.DELETED),
            kept=tuple(each.binding.pod for each, end in ended if end is _Undone.KEPT),
        )

    async def _undo_one(self, member: BindResult) -> _Undone:
        binding = member.binding
        if member.outcome in _LOST:
            return _Undone.NOTHING
        for attempt in range(_UNDO_TRIES):
            if attempt:
                await self._sleep(_GAP_S)
            try:
                undone = await self._try_undo(binding, bound_now=member.outcome in _BOUND_NOW)
            except HaversackError as error:
                log.info("a lost gang is not undone yet", pod=str(binding.pod), why=str(error))
                continue
            if undone is not None:
                return undone
        return _Undone.NOT_YET

    async def _try_undo(self, binding: Binding, *, bound_now: bool) -> _Undone | None:
        """Delete a member if it is bound by us; None when it changed under our hands.

        The order matters: read the pod, see that we still lead, touch exactly what was read. A
        leader that pauses in between and is succeeded meets the pod as the new leader left it,
        and its late deletion fails if that one has written to the pod.
        """
        raw = await self.read(binding.pod)
        if raw is None or not is_held(raw, binding):
            return _Undone.NOTHING
        if not bound_now and (raw.get("status") or {}).get("phase") != Phase.PENDING:
            return _Undone.KEPT
        if not await self.leads(int(binding.annotations.get(EPOCH) or 0)):
            return _Undone.STALE
        version = str(raw["metadata"]["resourceVersion"])
        version = await self._evictor.mark(binding.pod, _UNDO_REASON, version=version)
        if not version:
            return None
        eviction = await self._evictor.delete(binding.pod, version=version)
        if eviction.outcome in (EvictOutcome.GOING, EvictOutcome.GONE):
            return _Undone.DELETED
        return None

    async def leads(self, epoch: int) -> bool:
        """Whether the cluster's epoch is this very one, and not a later leader's.

        Raises:
            LostLeaseError: it has none, or an earlier one: whoever was overtaken cannot know it.
            HaversackError: what requests raise.
        """
        if self._fence is None:
            return True
        at = await self._fence.read_epoch()
        if at < epoch:
            raise LostLeaseError(f"the Lease {LEASE} is at epoch {at}, and ours is {epoch}")
        return at == epoch


def _body(binding: Binding) -> Document:
    return {
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {
            "name": binding.pod.name,
            "namespace": binding.pod.namespace,
            "uid": binding.pod.uid,
            "annotations": dict(binding.annotations),
        },
        "target": {"apiVersion": "v1", "kind": "Node", "name": binding.node},
    }


def is_held(raw: Document, binding: Binding) -> bool:
    """Whether the pod is where the binding puts it, bound or pinned, with the marks it carries."""
    pod = pod_of(raw)
    if (pod.node_name or pin_of(pod)) != binding.node:
        return False
    marks = raw["metadata"].get("annotations") or {}
    return all(
        marks.get(name) == value
        for name, value in binding.annotations.items()
        if name not in _NO_IDENTITY
    )
