"""Follows one kind of object: list, then watch, for ever, whatever the server does.

The protocol is that of the Kubernetes API concepts page ("Efficient detection of changes"):
resource versions come from the list, from bookmarks and from the watch's events in their order,
never from listed items; 410 in either form means list afresh.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Protocol, TypeVar

import numpy as np
import orjson
import structlog

from scheduler.errors import HaversackError, OverloadedError
from scheduler.execution.kubernetes.server import (
    ApiServer,
    Document,
    OutcomeUnknownError,
    RejectedError,
)

T = TypeVar("T")
Seen_contra = TypeVar("Seen_contra", contravariant=True)

log = structlog.get_logger(__name__)

_INITIAL_END: Final = "k8s.io/initial-events-end"
_BACKOFF_FIRST_S, _BACKOFF_LONGEST_S = 0.8, 30.0
_GRAVES_MAX = 20_000
_WORKED_S = 5.0
_STALE_LISTS = 3
_OPAQUE: Final = -1
"""A resource version that is no number: nothing is older or newer than it."""


class Sink(Protocol[Seen_contra]):
    """Keeps what a reader sees. A key is `namespace/name/uid`; the namespace may be empty.

    With the uid in the key, an object made again under the same name is another object.
    """

    def replaced(self, objects: Mapping[str, Seen_contra], /) -> None:
        """The first whole picture; later lists arrive as differences."""
        ...

    def changed(self, seen: Seen_contra, /) -> None:
        """It is new, or differs from what was told before."""
        ...

    def deleted(self, key: str, /) -> None:
        """It is gone, or no longer of the kind that is followed."""
        ...


@dataclass(frozen=True, slots=True)
class Pace:
    """The reader's times, in seconds.

    Attributes:
        watch_s: how long a watch may last; the server ends it (up to twice that, jittered).
        silence_s: without a byte for so long a watch counts as dead; above the bookmark period
            (about 60 s), or every quiet watch would be cut.
        relist_s: a whole list at least so often, for events that were lost on the way. While it
            runs (about 3 s of CPU for 20,000 pods) changes wait, so not much more often.
        sync_s: how long the first events of a streamed list may take.
        page: objects per page where lists are not streamed.
    """

    watch_s: float = 300.0
    silence_s: float = 90.0
    relist_s: float = 1800.0
    sync_s: float = 120.0
    page: int = 500


class _ExpiredError(Exception):
    """The resource version is too old; list afresh."""


class _UnreadableError(Exception):
    """The projection failed on an object."""


@dataclass(slots=True)
class _Listing(Generic[T]):
    """A list under way: what was seen of it, and each object's resource version."""

    objects: dict[str, T] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    unreadable: set[str] = field(default_factory=set)

    def drop(self, key: str) -> None:
        """It is no longer there."""
        self.objects.pop(key, None)
        self.versions.pop(key, None)


class Reader(Generic[T]):
    """Lists and watches one path into a sink. Holds one number per object, not the objects.

    Args:
        server: where to read.
        path: what to read, for example `/api/v1/pods`.
        project: turns an object into what the sink keeps, or None to leave it out. It must not
            keep parts of the dictionary, which is dropped at once.
        sink: told in the event loop's thread, between awaits.
        query: selectors, for example `fieldSelector`.
        pace: times.
        jitter: spreads backoffs and relists, so that many readers do not come at once.
        sleep: waits before a new try.

    Attributes:
        synced: set once the sink has had the first whole picture; never cleared.
        trouble: why the last try failed; "" while all is well.
        unreadable: keys of objects that `project` failed on; the sink keeps what it had of them.
    """

    def __init__(
        self,
        server: ApiServer,
        path: str,
        project: Callable[[Document], T | None],
        sink: Sink[T],
        *,
        query: Mapping[str, str] | None = None,
        pace: Pace | None = None,
        jitter: np.random.Generator | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.synced = asyncio.Event()
        self.trouble = ""
        self.unreadable: set[str] = set()
        self._server = server
        self._path = path
        self._project = project
        self._sink = sink
        self._query = dict(query or {})
        self._pace = pace or Pace()
        # Unseeded by default: replicas that draw alike would come back all at once.
        self._jitter = jitter or np.random.Generator(np.random.PCG64())
        self._sleep = sleep
        self._known: dict[str, int] = {}
        self._graves: dict[str, int] = {}
        self._version = ""
        self._version_number = self._listed_number = _OPAQUE
        self._streams_lists = True
        self._heard_s = self._listed_s = float("-inf")
        self._relist_after_s = 0.0
        self._failures = self._silences = self._list_tries = self._stale_lists = 0

    @property
    def age_s(self) -> float:
        """Seconds since the server last said anything; infinite before it ever did."""
        return _now_s() - self._heard_s

    async def run(self) -> None:
        """Follow until cancelled. No fault of the server or the network ends it."""
        while True:
            pause_s = 0.0
            try:
                if not self._version or self._relist_due():
                    await self._list()
                self.trouble = ""
                await self._watch()
            except _ExpiredError:
                self._version = ""
                log.info("resource version expired; listing afresh", path=self._path)
            except HaversackError as error:
                self.trouble = str(error)
                log.info("reading interrupted; trying again", path=self._path, why=self.trouble)
                if isinstance(error, OverloadedError):
                    pause_s = error.retry_after_s
            await self._sleep(max(pause_s, self._backoff_s()))

    def _backoff_s(self) -> float:
        """How long to wait; next to nothing after a watch that worked, doubling otherwise."""
        self._failures += 1
        if self._failures == 1:
            return float(self._jitter.uniform(0.0, 0.1))
        delay_s = _BACKOFF_FIRST_S * 2.0 ** min(self._failures - 2, 8)
        return float(min(delay_s * self._jitter.uniform(1.0, 1.5), _BACKOFF_LONGEST_S))

    def _relist_due(self) -> bool:
        return _now_s() >= self._listed_s + self._relist_after_s

    # Lists

    async def _list(self) -> None:
        """Get the whole picture and tell the sink what differs from the last one."""
        listing: _Listing[T] = _Listing()
        # Every other try goes by pages, should something on the way not like streamed lists.
        self._list_tries += 1
        if self._streams_lists and self._list_tries % 2 == 1:
            version = await self._stream_list(listing)
        else:
            version = await self._page_list(listing)
        self._check_age(version)
        self._tell(listing)
        self._listed_s = self._hear()
        self._relist_after_s = float(self._pace.relist_s * self._jitter.uniform(0.8, 1.0))
        self._version = version
        self._version_number = self._listed_number = _number(version)
        self._silences = self._list_tries = self._stale_lists = 0
        self.synced.set()

    def _check_age(self, version: str) -> None:
        """Raise OutcomeUnknownError for a list of the past: what has ended would live again.

        One server of several may lag behind. Where etcd was restored from a backup every list is
        of the past, so the third one in a row is believed.
        """
        if not _OPAQUE < _number(version) < self._version_number:
            return
        self._stale_lists += 1
        if self._stale_lists < _STALE_LISTS:
            raise OutcomeUnknownError(
                f"{self._path}: a list of version {version}, older than what was seen before"
            )

    async def _stream_list(self, listing: _Listing[T]) -> str:
        """A list sent as the first events of a watch: no buffer of the whole. Its version."""
        query = self._query | {
            "watch": "1",
            "sendInitialEvents": "true",
            "resourceVersion": "",
            "resourceVersionMatch": "NotOlderThan",
            "allowWatchBookmarks": "true",  # without it the mark of the end never comes
            "timeoutSeconds": str(int(self._pace.sync_s)),
        }
        lines = self._server.lines(self._path, query, silence_s=self._pace.silence_s)
        try:
            async with aclosing(lines):
                async for line in lines:
                    kind, raw = _event(line)
                    self._hear()
                    if kind == "BOOKMARK" and _annotations(raw).get(_INITIAL_END) == "true":
                        return _version(raw)
                    if kind == "DELETED":
                        listing.drop(_key(raw))
                    elif kind != "BOOKMARK":
                        self._add(listing, raw)
        except RejectedError as error:
            if error.invalid or error.status == 400:  # noqa: PLR2004 - as older servers answer
                self._streams_lists = False
                return await self._page_list(listing)
            raise
        raise OutcomeUnknownError(f"{self._path}: the streamed list ended before it was whole")

    async def _page_list(self, listing: _Listing[T]) -> str:
        """A list in pages of one consistent state. Its version."""
        query = self._query | {"limit": str(self._pace.page)}
        while True:
            try:
                page = await self._server.list(self._path, query)
            except RejectedError as error:
                if error.expired:
                    raise _ExpiredError from error
                raise
            self._hear()
            for raw in page.get("items") or ():
                self._add(listing, raw)
            after = (page.get("metadata") or {}).get("continue")
            if not after:
                return _version(page)
            query["continue"] = after

    def _add(self, listing: _Listing[T], raw: Document) -> None:
        key = _key(raw)
        try:
            seen = self._read(key, raw)
        except _UnreadableError:
            listing.unreadable.add(key)
            if key in self._known:
                listing.versions[key] = self._known[key]  # neither changed nor gone
            return
        if seen is None:
            listing.drop(key)
        else:
            listing.objects[key] = seen
            listing.versions[key] = _number(_version(raw))

    def _read(self, key: str, raw: Document) -> T | None:
        """What the sink keeps of an object. Raises _UnreadableError when `project` fails."""
        try:
            seen = self._project(raw)
        except Exception as error:
            # One odd object, perhaps made on purpose, must not blind us to all the others.
            if key not in self.unreadable:
                log.exception("an object cannot be read", path=self._path, key=key)
            self.unreadable.add(key)
            raise _UnreadableError from error
        self.unreadable.discard(key)
        return seen

    def _tell(self, listing: _Listing[T]) -> None:
        before, self._known = self._known, listing.versions
        self._graves.clear()  # the list is newer than all that was ever said before
        self.unreadable = listing.unreadable
        if not self.synced.is_set():
            self._sink.replaced(listing.objects)
            return
        for key in before.keys() - listing.versions.keys():
            self._sink.deleted(key)
        for key, seen in listing.objects.items():
            version = listing.versions[key]
            if version == _OPAQUE or before.get(key) != version:
                self._sink.changed(seen)

    # Watches

    async def _watch(self) -> None:
        """Follow the changes since the last version until the server ends the watch."""
        began_s = _now_s()
        watch_s = self._pace.watch_s * self._jitter.uniform(1.0, 2.0)
        left_s = self._listed_s + self._relist_after_s - began_s
        asked_s = max(int(min(watch_s, left_s)), 1)
        query = self._query | {
            "watch": "1",
            "resourceVersion": self._version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(asked_s),
        }
        lines = self._server.lines(self._path, query, silence_s=self._pace.silence_s)
        try:
            async with aclosing(lines):
                async for line in lines:
                    self._take(*_event(line))
                    self._hear()
                    self._failures = self._silences = 0
        except RejectedError as error:
            if error.expired:
                raise _ExpiredError from error
            raise
        except OutcomeUnknownError:
            if _now_s() - max(began_s, self._heard_s) >= self._pace.silence_s:
                # A version from the future (a restored etcd) makes a watch hang for ever.
                self._silences += 1
                if self._silences > 1:
                    self._version = ""
            raise
        if _now_s() - began_s >= min(_WORKED_S, 0.9 * asked_s):
            self._failures = 0

    def _take(self, kind: str, raw: Document) -> None:
        """One event of the watch."""
        version = _version(raw)
        number = _number(version)
        if kind != "BOOKMARK":
            self._change(kind, raw, number)
        if number >= self._version_number or number == _OPAQUE:
            self._version, self._version_number = version, number

    def _change(self, kind: str, raw: Document, number: int) -> None:
        key = _key(raw)
        known = max(self._known.get(key, self._graves.get(key, _OPAQUE)), self._listed_number)
        gone = kind == "DELETED"
        if number != _OPAQUE and (number < known or (number == known and not gone)):
            return  # said before, or older than what was said: a replay
        try:
            seen = None if gone else self._read(key, raw)
        except _UnreadableError:
            return
        if seen is not None:
            self._graves.pop(key, None)
            self._known[key] = number
            self._sink.changed(seen)
            return
        self.unreadable.discard(key)
        self._graves[key] = number
        if len(self._graves) > _GRAVES_MAX:
            del self._graves[next(iter(self._graves))]
        if self._known.pop(key, None) is not None:
            self._sink.deleted(key)

    def _hear(self) -> float:
        self._heard_s = _now_s()
        return self._heard_s


def _now_s() -> float:
    return asyncio.get_running_loop().time()


def _event(line: bytes) -> tuple[str, Document]:
    """Kind and object of an event. An ERROR event raises what it says."""
    try:
        event = orjson.loads(line)
        kind, raw = event["type"], event["object"]
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise OutcomeUnknownError(f"not an event of a watch: {line[:200]!r}") from error
    if kind != "ERROR":
        return kind, raw
    told = RejectedError(
        int(raw.get("code") or 0), str(raw.get("reason") or ""), str(raw.get("message") or "")
    )
    if told.expired:
        raise _ExpiredError from told
    raise told


def _key(raw: Document) -> str:
    metadata = raw["metadata"]
    return f"{metadata.get('namespace') or ''}/{metadata['name']}/{metadata.get('uid') or ''}"


def _version(raw: Document) -> str:
    return str(raw["metadata"].get("resourceVersion") or "")


def _annotations(raw: Document) -> Mapping[str, Any]:
    return raw["metadata"].get("annotations") or {}


def _number(version: str) -> int:
    """A resource version as a number: comparable for one resource from Kubernetes 1.35 on."""
    return int(version) if version.isdecimal() else _OPAQUE
