"""Identifiers: a prefix, the time, and randomness, so that ids sort by age and never collide."""

from __future__ import annotations

import hashlib
import os
import random
from base64 import b32hexencode
from typing import Protocol

from scheduler.clock import Clock
from scheduler.model.quantity import NodeId

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford base32, no i l o u


def node_id(identity: str) -> NodeId:
    """`n-` and 16 characters of [0-9a-v] that depend on `identity` alone."""
    digest = hashlib.sha256(f"haversack-node:{identity}".encode()).digest()
    return NodeId("n-" + b32hexencode(digest).decode().lower()[:16])


class IdSource(Protocol):
    """Makes identifiers; injected, so that tests and simulations repeat."""

    def new(self, prefix: str) -> str:
        """A fresh id such as `j-01k9zr5m3a7c2f4q`."""
        ...


def _base32(number: int, width: int) -> str:
    digits = []
    for _ in range(width):
        number, digit = divmod(number, 32)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))


class SystemIds:
    """Ids from the clock (45 bits of milliseconds) and 35 random bits."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        # Unique, not secret: no system call for each id. getrandbits is one step for all threads.
        self._random = random.Random(os.urandom(32))  # noqa: S311 - ids grant nothing

    def new(self, prefix: str) -> str:
        """A fresh id; ids made in different milliseconds sort by time."""
        milliseconds = int(self._clock.now() * 1000)
        return f"{prefix}-{_base32(milliseconds, 9)}{_base32(self._random.getrandbits(35), 7)}"
