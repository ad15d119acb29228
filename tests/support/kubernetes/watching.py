"""One watch: what it begins with, what it sends, when it sends bookmarks and when it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

import orjson
from support.kubernetes.faults import EVENT_FAULTS, LIST_FAULTS, STREAM_FAULTS, Deed, Fault, Faults
from support.kubernetes.refusals import Json, RefusedError, expired, invalid
from support.kubernetes.resources import Resource
from support.kubernetes.selectors import Selection
from support.kubernetes.storage import Change, Shelf, Signal, Storage, Watcher

INITIAL_EVENTS_END = "k8s.io/initial-events-end"
_BEFORE_THE_END_S = 2.0
_WITHOUT_LIMIT_S = 1800.0


class StreamCutError(Exception):
    """The connection is to be cut now, without any farewell."""


@dataclass(frozen=True, slots=True)
class WatchOptions:
    """The query of a watch.

    Attributes:
        version: resourceVersion to begin after; empty or "0" begins with what there is.
        bookmarks: allowWatchBookmarks.
        initial: sendInitialEvents; None where it was not said.
        timeout_s: how long the watch stays open.
    """

    version: str
    bookmarks: bool
    initial: bool | None
    timeout_s: float

    @classmethod
    def read(cls, query: Mapping[str, str]) -> WatchOptions:
        """From a query.

        Raises:
            RefusedError: 422, options that exclude each other; 500, a version that is no number.
        """
        initial, match = query.get("sendInitialEvents"), query.get("resourceVersionMatch", "")
        why = ""
        if initial is not None and match != "NotOlderThan":
            why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
        elif initial is None and match:
            why = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"
        if why:
            field = "resourceVersionMatch"
            raise invalid("ListOptions", "", field, f"Forbidden: {why}", group="meta.k8s.io")
        version = query.get("resourceVersion", "")
        if version and not version.isdigit():
            why = f'resourceVersion: Invalid value: "{version}": strconv.ParseUint: parsing'
            raise RefusedError(500, "", why)
        asked = float(query.get("timeoutSeconds") or 0)
        return cls(
            version=version,
            bookmarks=query.get("allowWatchBookmarks") in ("true", "1"),
            initial=None if initial is None else initial in ("true", "1"),
            timeout_s=asked or _WITHOUT_LIMIT_S,
        )


class Watch:
    """The lines of one watch.

    Args:
        storage: for its present version.
        resource: what is watched.
        selection: which of it.
        options: how.
        faults: what goes wrong on the way.
        deed: what the faults know of it.
        bookmark_every_s: period of bookmarks.
    """

    def __init__(
        self,
        storage: Storage,
        resource: Resource,
        selection: Selection,
        options: WatchOptions,
        faults: Faults,
        deed: Deed,
        *,
        bookmark_every_s: float,
    ) -> None:
        self._storage = storage
        self._resource = resource
        self._selection = selection
        self._options = options
        self._faults = faults
        self._every_s = bookmark_every_s
        self._deed = deed
        self._watcher = Watcher()
        self._after = 0
        self._told_until = 0
        self._last: bytes | None = None
        self._held: bytes | None = None

    async def lines(self) -> AsyncIterator[bytes]:
        """Events as JSON lines, until the watch ends.

        Raises:
            StreamCutError: the connection is to be cut.
        """
        shelf = self._storage.shelf(self._resource.shelf)
        # One step without waiting: nothing can happen between the start and the subscription.
        opening = self._opening(shelf)
        self._told_until = max(self._told_until, self._after)
        shelf.watchers.add(self._watcher)
        try:
            for line in opening:
                yield line
            async for line in self._following():
                yield line
        finally:
            shelf.watchers.discard(self._watcher)

    def _opening(self, shelf: Shelf) -> list[bytes]:
        options, strikes = self._options, self._faults.strikes
        if strikes(self._deed, (Fault.WATCH_EXPIRED,)):
            self._watcher.pending.put_nowait(Signal.END)
            return [_error(expired("too old resource version"))]
        from_now = options.initial is False and options.version in ("", "0")
        if from_now:
            self._after = self._storage.version
            return []
        if options.initial or options.version in ("", "0"):
            return self._initial(shelf)
        self._after = int(options.version)
        try:
            past = list(shelf.since(self._after))
        except RefusedError as refusal:
            self._watcher.pending.put_nowait(Signal.END)
            return [_error(refusal)]
        return [line for change in past for line in self._told(change)]

    def _initial(self, shelf: Shelf) -> list[bytes]:
        """What there is, the mark of its end, and what came after it where it is stale."""
        version = self._storage.version
        if self._options.initial and self._faults.strikes(self._deed, LIST_FAULTS):
            version = max(version - self._faults.stale_by, shelf.floor)
        self._after = version
        lines = [
            orjson.dumps({"type": "ADDED", "object": found}) + b"\n"
            for found in shelf.listed(self._selection, version)
        ]
        if self._options.bookmarks:
            lines.append(self._marked(version, {INITIAL_EVENTS_END: "true"}))
        return lines + [line for change in shelf.since(version) for line in self._told(change)]

    async def _following(self) -> AsyncIterator[bytes]:
        now = asyncio.get_running_loop().time
        deadline = now() + self._options.timeout_s
        bookmark_at = self._next_bookmark(now(), deadline)
        while (left_s := deadline - now()) > 0:
            found = await self._next(min(left_s, max(bookmark_at - now(), 0.0)))
            if found is None or found is Signal.BOOKMARK:
                # Unasked, kube-apiserver sends none that says nothing new.
                due = found is not None or self._storage.version > self._told_until
                if due and self._options.bookmarks and now() < deadline:
                    for line in (*self._let_go(), self._bookmark({})):
                        yield line
                bookmark_at = self._next_bookmark(now(), deadline)
            elif found is Signal.CUT:
                raise StreamCutError
            elif found is Signal.END:
                return
            else:
                assert isinstance(found, Change)
                async for line in self._event(found):
                    yield line

    async def _next(self, limit_s: float) -> Change | Signal | None:
        """The next thing to tell; None when there was none in time."""
        pending = self._watcher.pending
        if not pending.empty():
            return pending.get_nowait()
        try:
            return await asyncio.wait_for(pending.get(), limit_s)
        except TimeoutError:
            return None

    async def _event(self, change: Change) -> AsyncIterator[bytes]:
        lines = self._told(change)
        fault = self._faults.strikes(self._deed, STREAM_FAULTS) if lines else None
        match fault:
            case None:
                for line in lines:
                    yield line
            case Fault.WATCH_CUT:
                yield lines[0][: len(lines[0]) // 2]
                raise StreamCutError
            case Fault.WATCH_SILENT:
                await self._silence()
            case _:
                self._watcher.pending = asyncio.Queue()
                self._watcher.pending.put_nowait(Signal.END)

    async def _silence(self) -> None:
        """Say nothing more, not even the end: the other side of a half-open connection."""
        while await self._watcher.pending.get() is not Signal.CUT:
            pass
        raise StreamCutError

    def _let_go(self) -> list[bytes]:
        """An event that was held back to come late: a bookmark must not overtake it."""
        held, self._held = self._held, None
        return [] if held is None else [held]

    def _next_bookmark(self, now: float, deadline: float) -> float:
        """At the period, and shortly before the end, as kube-apiserver has it."""
        last = deadline - _BEFORE_THE_END_S
        return min(now + self._every_s, last) if last > now else deadline

    def _told(self, change: Change) -> list[bytes]:
        """The lines about one change, faults included."""
        if change.version <= self._after:
            return []
        event = change.line(self._selection)
        if event is None:
            return []
        line, self._told_until = event[1], change.version
        match self._faults.strikes(self._deed, EVENT_FAULTS):
            case Fault.EVENT_SWALLOWED:
                lines = []
            case Fault.EVENT_TWICE:
                lines = [line, line]
            case Fault.EVENT_REPLAYED:
                lines = [line, self._last or line]
            case Fault.EVENTS_SWAPPED if self._held is None:
                self._held = line
                return []
            case _:
                lines = [line]
        self._last = line
        return [*lines, *self._let_go()]

    def _bookmark(self, annotations: Json) -> bytes:
        self._told_until = max(self._storage.version, self._told_until)
        return self._marked(self._told_until, annotations)

    def _marked(self, version: int, annotations: Json) -> bytes:
        metadata: Json = {"resourceVersion": str(version)}
        if annotations:
            metadata["annotations"] = annotations
        body: Json = {
            "kind": self._resource.kind,
            "apiVersion": self._resource.api_version,
            "metadata": metadata,
        }
        if self._resource.kind == "Pod":
            body |= {"spec": {"containers": None}, "status": {}}
        return orjson.dumps({"type": "BOOKMARK", "object": body}) + b"\n"


def _error(refusal: RefusedError) -> bytes:
    return orjson.dumps({"type": "ERROR", "object": refusal.status()}) + b"\n"
