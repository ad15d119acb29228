"""What the daemon and its solver worker say to each other: length-prefixed pickles over two pipes.

Pickle is sound here: both ends are the same code of the same user, and nobody else holds the pipe.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from operator import attrgetter
from typing import Any

from scheduler.model.plan import Plan
from scheduler.model.ports import Effort
from scheduler.model.quantity import UtcSeconds
from scheduler.model.snapshot import SnapshotDelta

FRAME_BYTES_MAX = 1 << 30
HEADER = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class Feed:
    """To the worker: bring your snapshot up to date."""

    delta: SnapshotDelta


@dataclass(frozen=True, slots=True)
class Decide:
    """To the worker: decide on your snapshot."""

    request: int
    policy: str
    effort: Effort
    now: UtcSeconds
    seed: int


@dataclass(frozen=True, slots=True)
class Ready:
    """From the worker: imported, solved a tiny model, and waiting."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """From the worker: a complete plan; a better one may follow."""

    request: int
    plan: Plan


@dataclass(frozen=True, slots=True)
class Done:
    """From the worker: the last candidate was the decision."""

    request: int


@dataclass(frozen=True, slots=True)
class Failed:
    """From the worker: no better plan will come, because of `message`."""

    request: int
    message: str


ToWorker = Feed | Decide
FromWorker = Ready | Candidate | Done | Failed


class ProtocolError(Exception):
    """A frame that none of ours can have sent."""


class _Reducers(dict[type, Callable[[Any], tuple[type, tuple[object, ...]]]]):
    """How values of each class are pickled; made at a class's first value.

    A dataclass is pickled as the call that makes it. What Python does with frozen slotted ones, a
    state list set field by field, takes three times as long, and a cluster is 100,000 values.
    """

    def __missing__(self, kind: type) -> Callable[[Any], tuple[type, tuple[object, ...]]]:
        if not is_dataclass(kind):
            raise KeyError(kind)
        names = [field.name for field in fields(kind)]
        # For a single name the getter answers the value itself, not a tuple of it.
        get = attrgetter(*names) if len(names) > 1 else None

        def reduce(value: Any) -> tuple[type, tuple[object, ...]]:
            arguments = get(value) if get else tuple(getattr(value, name) for name in names)
            return kind, arguments

        self[kind] = reduce
        return reduce


_REDUCERS = _Reducers()


def frame(message: ToWorker | FromWorker) -> bytes:
    """The message as bytes on the wire."""
    whole = io.BytesIO()
    whole.write(bytes(HEADER.size))  # filled in below: a cluster is 20 MB, not to be copied again
    pickler = pickle.Pickler(whole, protocol=pickle.HIGHEST_PROTOCOL)
    pickler.dispatch_table = _REDUCERS
    pickler.dump(message)
    HEADER.pack_into(whole.getbuffer(), 0, whole.tell() - HEADER.size)
    return whole.getvalue()


def body_bytes(header: bytes) -> int:
    """Length of the body that follows `header`.

    Raises:
        ProtocolError: no message of ours is that long.
    """
    (length,) = HEADER.unpack(header)
    if length > FRAME_BYTES_MAX:
        raise ProtocolError(f"a frame of {length} bytes")
    return int(length)


def message_of(body: bytes) -> ToWorker | FromWorker:
    """The message in a frame's body.

    Raises:
        ProtocolError: the bytes are not one of our messages.
    """
    try:
        message = pickle.loads(body)  # noqa: S301 - a private pipe between two of our processes
    except Exception as error:
        raise ProtocolError(f"an unreadable frame: {type(error).__name__}: {error}") from error
    if not isinstance(message, (Feed, Decide, Ready, Candidate, Done, Failed)):
        raise ProtocolError(f"a frame with a {type(message).__name__}")
    return message
