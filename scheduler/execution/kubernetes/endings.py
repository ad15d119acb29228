"""How an attempt ended, as its pods tell it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from scheduler.execution.kubernetes import labels
from scheduler.execution.kubernetes.pods import Phase, Pod
from scheduler.execution.kubernetes.raw import count_in
from scheduler.model.execution import RankExit
from scheduler.model.lifecycle import EndCause
from scheduler.model.quantity import UtcSeconds

_OVERTIME: Final = "DeadlineExceeded"
"""The kubelet's word for `activeDeadlineSeconds`."""


@dataclass(frozen=True, slots=True)
class End:
    """The end of a gang.

    Attributes:
        cause: why, as far as its pods know.
        message: what the first pod that failed says; "" if none did.
        at: when the last container ended; 0 if unknown.
        ranks: how each pod ended, in rank order.
        first_failure: the one that ended the gang, if one did.
    """

    cause: EndCause
    message: str
    at: UtcSeconds
    ranks: tuple[RankExit, ...]
    first_failure: RankExit | None


def end_of(pods: Sequence[Pod]) -> End:
    """The end of an attempt whose pods, at least one, have all ended.

    Where one rank fails the others are deleted, and fail in the same second: so whoever was not
    deleted is asked first.
    """
    ranks = sorted(pods, key=lambda pod: (_rank(pod), str(pod.ref)))
    exits = tuple(RankExit(rank, *_exit(pod)) for rank, pod in enumerate(ranks))
    failed = [rank for rank, pod in enumerate(ranks) if pod.phase is not Phase.SUCCEEDED]
    first = min(failed, key=lambda rank: (ranks[rank].deleting, _at(ranks[rank])), default=None)
    return End(
        cause=EndCause.COMPLETED if first is None else _cause(ranks[first]),
        message="" if first is None else _why(ranks[first]),
        at=max(map(_at, pods)),
        ranks=exits,
        first_failure=None if first is None else exits[first],
    )


def _at(pod: Pod) -> UtcSeconds:
    return pod.ending.finished_at if pod.ending is not None else UtcSeconds(0.0)


def _rank(pod: Pod) -> int:
    """Which of them it is; 0 where that is not told."""
    return count_in(pod.annotation(labels.RANK)) or 0


def _exit(pod: Pod) -> tuple[int | None, int | None]:
    """Exit code and signal of a pod that has ended, of its first failure if it had one."""
    exits = pod.ending.exits if pod.ending is not None else ()
    if not exits:
        return (0 if pod.phase is Phase.SUCCEEDED else None), None
    worst = next((each for each in exits if each.code), exits[-1])
    return worst.code, worst.signal or None


def _cause(pod: Pod) -> EndCause:
    """Why a failed pod ended: the node's or the cluster's doing, or the program's own."""
    if pod.ending is not None and pod.ending.reason == _OVERTIME:
        return EndCause.TIMED_OUT
    ran = pod.ending is not None and bool(pod.ending.exits)
    # One of ours that somebody has deleted: nobody else makes it anew.
    taken = pod.deleting and bool(pod.label(labels.ATTEMPT))
    return EndCause.INFRASTRUCTURE if pod.disruption or taken or not ran else EndCause.USER


def _why(pod: Pod) -> str:
    ending = pod.ending
    if ending is None:
        return f"pod {pod.ref.name} failed"
    told = ending.message or ending.reason
    bad = next((each for each in ending.exits if each.code), None)
    if bad is not None:
        told = told or f"container {bad.container} ended with {bad.code} ({bad.reason or 'Error'})"
    if pod.deleting:
        told = f"it was deleted; {told}" if told else "it was deleted"
    return f"pod {pod.ref.name}: {told or 'failed'}"
