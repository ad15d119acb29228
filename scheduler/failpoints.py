"""Named points where tests make the daemon fail. Off unless HAVERSACK_FAILPOINTS names one.

`HAVERSACK_FAILPOINTS="plan-after-commit=kill"`; kinds are `kill` (SIGKILL to this process),
`raise` (FailpointError) and `hang`; `kill@3` fires at the third pass.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter

NAMES = (
    "submit-before-commit",
    "submit-after-commit",
    "cycle-snapshot-read",
    "cycle-decided",
    "plan-before-commit",
    "plan-after-commit",
    "intent-claimed",
    "launch-before-spawn",
    "launch-after-spawn",
    "launch-settled",
    "start-seen",
    "start-stored",
    "exit-seen",
    "exit-stored",
    "cancel-before-commit",
    "cancel-stored",
    "stop-before-send",
    "stop-after-send",
    "reconcile-begun",
)
"""Every failpoint of the daemon, in the order a job meets them."""


class FailpointError(Exception):
    """Raised by a failpoint of kind `raise`."""


_passes: Counter[str] = Counter()
_lock = threading.Lock()


def _armed() -> dict[str, str]:
    armed: dict[str, str] = {}
    for part in filter(None, os.environ.get("HAVERSACK_FAILPOINTS", "").split(",")):
        name, _, kind = part.partition("=")
        if name not in NAMES:
            raise ValueError(f"HAVERSACK_FAILPOINTS names {name!r}; known: {', '.join(NAMES)}")
        armed[name] = kind or "kill"
    return armed


_ARMED = _armed()


def hit(name: str) -> None:
    """Fail here if this point is armed; costs one dictionary look-up otherwise."""
    kind = _ARMED.get(name)
    if kind is None:
        return
    kind, _, nth = kind.partition("@")
    with _lock:
        _passes[name] += 1
        if _passes[name] != int(nth or 1):
            return
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "hang":
        threading.Event().wait()
    raise FailpointError(name)
