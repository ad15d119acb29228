"""Judges every write that the fake API server accepts, whoever sent it and whatever was answered.

It sees writes and nothing else: no view of the daemon's, no clock. What is wrong at one instant is
wrong for good, even if it is put right a moment later.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from fractions import Fraction

from support.kubernetes.containers import amount_of, requested
from support.kubernetes.pod_rules import TERMINAL
from support.kubernetes.refusals import Json
from support.kubernetes.storage import Change

_GANG = "haversack.dev/gang"
_ATTEMPT = "haversack.dev/attempt"
_NONE: Fraction = Fraction(0)


class Oracle:
    """What pods and nodes have been through. Give it to `FakeApiServer.witness`.

    Attributes:
        bindings: pods that were given a node.
        violations: what must never happen and has; empty if all is well.
    """

    def __init__(self) -> None:
        self.bindings = 0
        self.violations: list[str] = []
        self._room: dict[str, dict[str, Fraction]] = {}
        self._used: defaultdict[str, defaultdict[str, Fraction]] = defaultdict(
            lambda: defaultdict(Fraction)
        )
        self._bound: dict[str, tuple[str, dict[str, Fraction]]] = {}
        self._ever: dict[str, str] = {}
        self._attempts: defaultdict[str, set[str]] = defaultdict(set)

    def __call__(self, change: Change) -> None:
        """One write."""
        written = change.now or change.before
        assert written is not None
        judge: Callable[[Json, bool], None] | None = {
            "Pod": self._pod,
            "Node": self._node,
        }.get(str(written.get("kind")))
        if judge is not None:
            judge(written, change.now is None)

    def used(self, node: str, resource: str) -> int:
        """What pods that have not ended ask for on a node."""
        return int(self._used[node][resource])

    def _node(self, node: Json, gone: bool) -> None:  # noqa: FBT001 - as all judges
        name = node["metadata"]["name"]
        if gone:
            self._room.pop(name, None)
            return
        offered = node["status"]["allocatable"]
        self._room[name] = {key: amount_of(text) for key, text in offered.items()}

    def _pod(self, pod: Json, gone: bool) -> None:  # noqa: FBT001 - as all judges
        uid, node = pod["metadata"]["uid"], pod["spec"].get("nodeName", "")
        over = gone or pod["status"].get("phase") in TERMINAL
        if node and uid not in self._ever:
            self._bind(pod, uid, node)
        elif node and self._ever[uid] != node:
            self._wrong(pod, f"moved from {self._ever[uid]} to {node}")
        if over and uid in self._bound:
            where, amounts = self._bound.pop(uid)
            for name, amount in amounts.items():
                self._used[where][name] -= amount

    def _bind(self, pod: Json, uid: str, node: str) -> None:
        self._ever[uid] = node
        self.bindings += 1
        amounts = requested(pod)
        self._bound[uid] = node, amounts
        room = self._room.get(node)
        for name, amount in amounts.items():
            self._used[node][name] += amount
            # A node may leave between a decision and its binding: nobody can exclude that.
            if room is not None and self._used[node][name] > room.get(name, _NONE):
                self._wrong(pod, f"over-commits {node}: {self._used[node][name]} of {name}")
        gang = (pod["metadata"].get("labels") or {}).get(_GANG)
        if gang is not None:
            attempts = self._attempts[gang]
            attempts.add((pod["metadata"].get("annotations") or {}).get(_ATTEMPT, ""))
            if len(attempts) > 1:
                self._wrong(pod, f"bound for another attempt than its gang: {sorted(attempts)}")

    def _wrong(self, pod: Json, what: str) -> None:
        name = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
        self.violations.append(f"pod {name}: {what}")
