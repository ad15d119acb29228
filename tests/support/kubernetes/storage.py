"""Where the fake keeps objects: one counter of versions, a bounded history, watchers.

Objects are never changed in place: every write stores a new dict, so that history, watchers and
pages of a list may share them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum

import orjson
from support.kubernetes.refusals import Json, expired
from support.kubernetes.selectors import Selection

Key = tuple[str, str]
"""Namespace (empty for types without) and name."""

HISTORY_LENGTH = 20_000


class Signal(Enum):
    """What a watcher is told that is not a change."""

    BOOKMARK = "bookmark"
    END = "end in good order"
    CUT = "cut the connection"


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """One write.

    Attributes:
        version: resourceVersion it made.
        now: the object after it; None when the write removed it.
        before: the object before it; None when it was created.
        gone: the removed object at its last version.
    """

    version: int
    now: Json | None
    before: Json | None
    gone: Json | None = None
    _lines: dict[str, bytes] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        """Which object it was written to."""
        written = self.now or self.before
        assert written is not None
        return written["metadata"].get("namespace", ""), written["metadata"]["name"]

    def line(self, selection: Selection) -> tuple[str, bytes] | None:
        """Type and JSON line of the event as a watch with this selection sees it, if it does.

        An object that stops matching is deleted for that watch, at its last matching content and
        the version of the write (as the server's watch cache does).
        """
        matched = self.before is not None and selection.takes(self.before)
        if self.now is not None and selection.takes(self.now):
            kind = "MODIFIED" if matched else "ADDED"
            return kind, self._cached(kind, self.now)
        if not matched or self.before is None:
            return None
        if self.now is None:
            assert self.gone is not None
            return "DELETED", self._cached("DELETED", self.gone)
        last = {
            **self.before,
            "metadata": {**self.before["metadata"], "resourceVersion": str(self.version)},
        }
        return "DELETED", self._cached("LEFT", last)

    def _cached(self, kind: str, found: Json) -> bytes:
        line = self._lines.get(kind)
        if line is None:
            shown = "DELETED" if kind == "LEFT" else kind
            line = orjson.dumps({"type": shown, "object": found}) + b"\n"
            self._lines[kind] = line
        return line


class Watcher:
    """What one open watch has still to send."""

    def __init__(self) -> None:
        self.pending: asyncio.Queue[Change | Signal] = asyncio.Queue()


@dataclass(slots=True, eq=False)
class Shelf:
    """Objects of one type, in the order of their keys when listed, and what happened to them.

    Attributes:
        floor: versions below cannot be watched from any more.
    """

    objects: dict[Key, Json] = field(default_factory=dict)
    history: deque[Change] = field(default_factory=deque)
    watchers: set[Watcher] = field(default_factory=set)
    floor: int = 0

    def since(self, version: int) -> Iterator[Change]:
        """Changes after a version.

        Raises:
            RefusedError: 410, that version is below the floor.
        """
        if version < self.floor:
            raise expired(f"too old resource version: {version} ({self.floor})")
        return (change for change in tuple(self.history) if change.version > version)

    def listed(self, selection: Selection, version: int | None = None) -> list[Json]:
        """What a selection takes, by namespace and name, now or at a version of the history."""
        objects = self.objects if version is None else self._at(version)
        return [found for _, found in sorted(objects.items()) if selection.takes(found)]

    def _at(self, version: int) -> dict[Key, Json]:
        objects = dict(self.objects)
        for change in reversed(self.history):
            if change.version <= version:
                break
            if change.before is None:
                del objects[change.key]
            else:
                objects[change.key] = change.before
        return objects


class Storage:
    """All objects.

    Attributes:
        version: resourceVersion of the last write; one counter for all types.
        witnesses: told of every write, in order, before anybody else.
    """

    def __init__(self, version: int = 100) -> None:
        self.version = version
        self.witnesses: list[Callable[[Change], None]] = []
        self._first = version
        self._shelves: dict[tuple[str, str], Shelf] = {}

    def shelf(self, name: tuple[str, str]) -> Shelf:
        """The objects of a type; the floor of a new one is the first version of all."""
        found = self._shelves.get(name)
        if found is None:
            found = self._shelves[name] = Shelf(floor=self._first)
        return found

    def put(self, name: tuple[str, str], key: Key, document: Json) -> Json:
        """Store an object; the stored form, with its new resourceVersion."""
        shelf = self.shelf(name)
        self.version += 1
        stored = {
            **document,
            "metadata": {**document["metadata"], "resourceVersion": str(self.version)},
        }
        before = shelf.objects.get(key)
        shelf.objects[key] = stored
        self._publish(shelf, Change(self.version, stored, before))
        return stored

    def remove(self, name: tuple[str, str], key: Key) -> Json:
        """Take an object out; its last form, at the version of the removal."""
        shelf = self.shelf(name)
        before = shelf.objects.pop(key)
        self.version += 1
        gone = {
            **before,
            "metadata": {**before["metadata"], "resourceVersion": str(self.version)},
        }
        self._publish(shelf, Change(self.version, None, before, gone))
        return gone

    def compact(self) -> None:
        """Forget all history: only the present can be watched from."""
        for shelf in self._shelves.values():
            shelf.history.clear()
            shelf.floor = self.version
        self._first = self.version

    def signal(self, signal: Signal) -> None:
        """Tell every open watch."""
        for shelf in self._shelves.values():
            for watcher in shelf.watchers:
                watcher.pending.put_nowait(signal)

    def watching(self) -> int:
        """Open watches."""
        return sum(len(shelf.watchers) for shelf in self._shelves.values())

    def _publish(self, shelf: Shelf, change: Change) -> None:
        for witness in self.witnesses:
            witness(change)
        shelf.history.append(change)
        if len(shelf.history) > HISTORY_LENGTH:
            shelf.floor = shelf.history.popleft().version
        for watcher in shelf.watchers:
            watcher.pending.put_nowait(change)
