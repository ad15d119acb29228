"""Turns the records of an attempt's folder into what the store is told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from scheduler.execution.local.files import AttemptFolder
from scheduler.execution.local.process import Identity
from scheduler.model.execution import AttemptObservation, Phase, RankExit
from scheduler.model.lifecycle import EndCause
from scheduler.model.quantity import AttemptId, UtcSeconds


def ended(folder: AttemptFolder) -> bool:
    """Whether it is proved that nothing of the attempt is left."""
    return folder.has("exit.json") or folder.has("vanished.json")


def started_at(folder: AttemptFolder) -> UtcSeconds | None:
    """When all ranks had been started; None if they have not.

    Raises:
        OSError, ValueError: the record is there and cannot be read.
    """
    record = folder.read("started.json")
    return None if record is None else _instant(record, "started_at")


def rank_leaders(folder: AttemptFolder, boot: str) -> list[Identity]:
    """The ranks, each the leader of its own session; none before the start was recorded.

    Raises:
        OSError, ValueError: the record is there and cannot be read.
    """
    record = folder.read("started.json") or {}
    leaders = cast("list[list[int]]", record.get("leaders", []))
    return [Identity(pid, start_ticks, boot) for pid, start_ticks in leaders]


def exit_observation(attempt_id: AttemptId, record: Mapping[str, object]) -> AttemptObservation:
    """What exit.json says.

    Raises:
        ValueError: it is not a complete exit record.
    """
    try:
        ranks = cast("list[Mapping[str, object]]", record["ranks"])
        failure = cast("Mapping[str, object] | None", record["first_failure"])
        return AttemptObservation(
            attempt_id,
            Phase.EXITED,
            started_at=_instant(record, "started_at"),
            ended_at=_instant(record, "ended_at"),
            cause=EndCause(str(record["cause"])),
            ranks=tuple(_rank_exit(rank) for rank in ranks),
            first_failure=None if failure is None else _rank_exit(failure),
            message=str(record["message"]),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"damaged exit record: {error}") from error


def _instant(record: Mapping[str, object], name: str) -> UtcSeconds | None:
    value = record[name]
    return UtcSeconds(float(value)) if isinstance(value, int | float) else None


def _rank_exit(record: Mapping[str, object]) -> RankExit:
    return RankExit(
        rank=cast("int", record["rank"]),
        exit_code=cast("int | None", record["exit_code"]),
        signal=cast("int | None", record["signal"]),
    )
