"""Events on pods: what `kubectl describe pod` shows of our doing. Best effort and bounded."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import structlog

from scheduler.clock import Clock
from scheduler.errors import HaversackError
from scheduler.execution.kubernetes.pods import PodRef
from scheduler.execution.kubernetes.server import ApiServer, Document, Lane, RejectedError
from scheduler.model.quantity import UtcSeconds

log = structlog.get_logger(__name__)

CONTROLLER: Final = "haversack.dev/scheduler"
_NOTE_MAX, _NAME_MAX, _INSTANCE_MAX = 1024, 253, 128
_GAP_S = 60.0
_SERIES_S = 1800.0
"""A repeated event is one series for so long (client-go starts a new one after 30 minutes)."""
_REMEMBERED_MAX = 20_000
_UNDER_WAY_MAX = 64


@dataclass(slots=True)
class _Told:
    """The last event of one pod and reason."""

    path: str
    note: str
    first_s: float
    written_s: float
    count: int = 1


class Events:
    """Writes events; one of a kind per pod and minute, and repeats as a series.

    Nothing waits for an event: what the cluster does not take is logged and lost, and what comes
    too thick is counted in `dropped` and lost.

    Args:
        server: the cluster.
        clock: for the times in events, and between them.
        instance: which daemon it was; cut at 128 bytes.
    """

    def __init__(self, server: ApiServer, clock: Clock, instance: str) -> None:
        self._server = server
        self._clock = clock
        self._instance = _cut(instance, _INSTANCE_MAX)
        self._told: OrderedDict[tuple[str, str], _Told] = OrderedDict()
        self._under_way = self._stamp = 0
        self.dropped = 0

    async def waits(self, pod: PodRef, why: str) -> None:
        """The pod found no node; at most one per pod in 60 seconds."""
        await self._tell(pod, "FailedScheduling", "Scheduling", why, warning=True)

    async def bound(self, pod: PodRef, node: str) -> None:
        """The pod got its node."""
        note = f"Successfully assigned {pod.namespace}/{pod.name} to {node}"
        await self._tell(pod, "Scheduled", "Binding", note)

    async def pinned(self, pod: PodRef, node: str, path: str) -> None:
        """The pod's node is chosen; whether it gets it is for kube-scheduler to say."""
        await self._tell(pod, "Pinned", "Pinning", f"Pinned to {node} ({path})")

    async def preempted(self, pod: PodRef, why: str, *, by: PodRef | None = None) -> None:
        """The pod had to make room, for `by` if that is one pod."""
        await self._tell(pod, "Preempted", "Preempting", why, related=by)

    async def _tell(
        self,
        pod: PodRef,
        reason: str,
        action: str,
        note: str,
        *,
        warning: bool = False,
        related: PodRef | None = None,
    ) -> None:
        now_s = self._clock.monotonic_s()
        key = (pod.uid, reason)
        told = self._told.get(key)
        if told is not None:
            told.count += 1
            if now_s - told.written_s < _GAP_S:
                return
        if self._under_way >= _UNDER_WAY_MAX:
            self.dropped += 1
            return
        event = self._event(pod, reason, action, note, warning=warning)
        if related is not None:
            event["related"] = _reference(related)
        self._under_way += 1
        try:
            if told is not None and told.note == note and now_s - told.first_s < _SERIES_S:
                told.written_s = now_s
                if await self._repeat(told):
                    return
            path = f"/apis/events.k8s.io/v1/namespaces/{pod.namespace}/events"
            # Remembered first: whatever comes of it, it is not tried again for a minute.
            self._remember(key, _Told(f"{path}/{event['metadata']['name']}", note, now_s, now_s))
            await self._server.post(path, event, lane=Lane.REPORT)
        except HaversackError as error:
            self.dropped += 1
            log.info("event not written", pod=str(pod), reason=reason, why=str(error))
        finally:
            self._under_way -= 1

    def _remember(self, key: tuple[str, str], told: _Told) -> None:
        self._told[key] = told
        self._told.move_to_end(key)
        if len(self._told) > _REMEMBERED_MAX:
            self._told.popitem(last=False)

    def _event(
        self, pod: PodRef, reason: str, action: str, note: str, *, warning: bool
    ) -> Document:
        """A new event, as events.k8s.io/v1 requires it."""
        now = self._clock.now()
        self._stamp = max(self._stamp + 1, int(now * 1e9))  # no two events of ours share a name
        suffix = f".{self._stamp:x}"
        return {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {
                "name": pod.name[: _NAME_MAX - len(suffix)] + suffix,
                "namespace": pod.namespace,
            },
            "eventTime": _micro_time(now),
            "reportingController": CONTROLLER,
            "reportingInstance": self._instance,
            "regarding": _reference(pod),
            "reason": reason,
            "action": action,
            "note": _cut(note, _NOTE_MAX),
            "type": "Warning" if warning else "Normal",
        }

    async def _repeat(self, told: _Told) -> bool:
        """Count one more of a known event; False if the cluster has forgotten it."""
        series = {"count": told.count, "lastObservedTime": _micro_time(self._clock.now())}
        try:
            await self._server.patch(told.path, {"series": series}, lane=Lane.REPORT)
        except RejectedError as error:
            if error.missing:
                return False
            raise
        return True


def _reference(pod: PodRef) -> Document:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "namespace": pod.namespace,
        "name": pod.name,
        "uid": pod.uid,
    }


def _cut(text: str, longest: int) -> str:
    """At most `longest` bytes of UTF-8: the API counts bytes, whatever its messages say."""
    return text.encode()[:longest].decode(errors="ignore")


def _micro_time(instant: UtcSeconds) -> str:
    """An instant as Kubernetes' MicroTime wants it: six digits after the second, no less."""
    moment = datetime.fromtimestamp(instant, UTC)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
