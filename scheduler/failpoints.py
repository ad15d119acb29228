"""Named points where tests make the daemon fail. Off unless HAVERSACK_FAILPOINTS names one.

`HAVERSACK_FAILPOINTS="plan-after-commit=kill"`; kinds are `kill` (SIGKILL to this process),
`raise` (FailpointError), `hang` (this thread, for ever) and `freeze` (SIGSTOP to this process:
SIGCONT lets it go on); `kill@3` fires at the third pass. A point that fires first appends
`<name> <kind> <pid>` to the file that HAVERSACK_FAILPOINTS_LOG names.

The points of LAUNCHER_NAMES are in the launcher, a process of its own for each attempt.
`for_launcher` hands them over; passes are counted over all launchers that one daemon starts.
Standard library only.
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
    "launcher-before-claim",
    "launcher-after-claim",
    "launcher-after-fork",
    "launch-settled",
    "start-seen",
    "start-stored",
    "launcher-before-exit-record",
    "exit-seen",
    "exit-stored",
    "cancel-before-commit",
    "cancel-stored",
    "stop-before-send",
    "stop-after-send",
    "reconcile-begun",
)
"""Every failpoint of a job that we launch ourselves, in the order a job meets them."""
POD_NAMES = ("create-before-send", "create-after-send", "pods-first-made", "pods-made")
"""Those of a job on a cluster whose pods we make; the first two once for each object."""
BIND_NAMES = ("bind-before-send", "bind-after-send")
"""Those that a job meets on a cluster besides, once for each of its pods."""
PIN_NAMES = ("pin-before-send", "pin-after-send", "ungate-before-send", "ungate-after-send")
"""Instead of those, where kube-scheduler binds its pods."""
_KNOWN = (*NAMES, *POD_NAMES, *BIND_NAMES, *PIN_NAMES)
LAUNCHER_NAMES = tuple(name for name in NAMES if name.startswith("launcher-"))
KINDS = ("kill", "raise", "hang", "freeze")
_VARIABLE, _LOG_VARIABLE = "HAVERSACK_FAILPOINTS", "HAVERSACK_FAILPOINTS_LOG"


class FailpointError(Exception):
    """Raised by a failpoint of kind `raise`."""


_passes: Counter[str] = Counter()
_lock = threading.Lock()


def _armed() -> dict[str, tuple[str, int]]:
    armed: dict[str, tuple[str, int]] = {}
    for part in filter(None, os.environ.get(_VARIABLE, "").split(",")):
        name, _, what = part.partition("=")
        kind, _, nth = what.partition("@")
        if name not in _KNOWN:
            known = ", ".join(_KNOWN)
            raise ValueError(f"{_VARIABLE} names {name!r}; known: {known}")
        if kind and kind not in KINDS:
            raise ValueError(f"{_VARIABLE} wants {kind!r}; known: {', '.join(KINDS)}")
        armed[name] = (kind or "kill", int(nth or 1))
    return armed


_ARMED = _armed()


def hit(name: str) -> None:
    """Fail here if this point is armed; costs one dictionary look-up otherwise."""
    kind = _due(name)
    if kind is None:
        return
    _tell(f"{name} {kind} {os.getpid()}\n")
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "hang":
        threading.Event().wait()
    elif kind == "freeze":
        os.kill(os.getpid(), signal.SIGSTOP)
        return
    raise FailpointError(name)


def for_launcher() -> dict[str, str]:
    """Environment variables that arm the next launcher; empty when none of its points is due."""
    due = {name: kind for name in LAUNCHER_NAMES if (kind := _due(name))}
    if not due:
        return {}
    armed = {_VARIABLE: ",".join(f"{name}={kind}" for name, kind in due.items())}
    log = os.environ.get(_LOG_VARIABLE)
    return armed | ({_LOG_VARIABLE: log} if log else {})


def _due(name: str) -> str | None:
    """What this pass does, if anything. Counts the pass."""
    armed = _ARMED.get(name)
    if armed is None:
        return None
    kind, nth = armed
    with _lock:
        _passes[name] += 1
        return kind if _passes[name] == nth else None


def _tell(line: str) -> None:
    path = os.environ.get(_LOG_VARIABLE)
    if not path:
        return
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.write(log, line.encode())
    finally:
        os.close(log)
