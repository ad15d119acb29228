"""What a launcher is told: every process of the gang with its argv and environment.

Part of the launcher: standard library only. Written by the executor as `order.json`, read once.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


class RankOrder:
    """One process of the gang.

    Attributes:
        rank: its number in the gang, from 0.
        argv: what to execute; never a shell string.
        env: the complete environment, but for the master port.
    """

    __slots__ = ("argv", "env", "rank")

    def __init__(self, rank: int, argv: list[str], env: dict[str, str]) -> None:
        self.rank = rank
        self.argv = argv
        self.env = env


class GangOrder:
    """A whole attempt.

    Attributes:
        attempt_id: the attempt.
        epoch: leader epoch that gives this order.
        ranks: in rank order; at least one.
        workdir: absolute, or None for the attempt's own folder.
        stop_signal: name of the signal that asks a rank to end.
        grace_s: seconds between that signal and SIGKILL.
        max_runtime_s: seconds allowed once all ranks run, or None.
        log_bytes_max: cap of one rank's log.
        open_files_max: RLIMIT_NOFILE of a rank.
        master_port: whether the gang needs a MASTER_PORT of its own.
        launch_before_s: seconds since boot at which this order lapses, or None.
    """

    __slots__ = (
        "attempt_id",
        "epoch",
        "grace_s",
        "launch_before_s",
        "log_bytes_max",
        "master_port",
        "max_runtime_s",
        "open_files_max",
        "ranks",
        "stop_signal",
        "workdir",
    )

    def __init__(
        self,
        *,
        attempt_id: str,
        epoch: int,
        ranks: list[RankOrder],
        workdir: str | None,
        stop_signal: str,
        grace_s: float,
        max_runtime_s: float | None,
        log_bytes_max: int,
        open_files_max: int,
        master_port: bool,
        launch_before_s: float | None = None,
    ) -> None:
        self.attempt_id = attempt_id
        self.epoch = epoch
        self.ranks = ranks
        self.workdir = workdir
        self.stop_signal = stop_signal
        self.grace_s = grace_s
        self.max_runtime_s = max_runtime_s
        self.log_bytes_max = log_bytes_max
        self.open_files_max = open_files_max
        self.master_port = master_port
        self.launch_before_s = launch_before_s

    def to_record(self) -> dict[str, object]:
        """The order as JSON values."""
        record: dict[str, object] = {
            name: getattr(self, name) for name in self.__slots__ if name != "ranks"
        }
        record["ranks"] = [{"rank": r.rank, "argv": r.argv, "env": r.env} for r in self.ranks]
        return record

    @classmethod
    def from_record(cls, record: Mapping[str, object]) -> GangOrder:
        """Read `to_record` back.

        Raises:
            ValueError: the record is not a complete order.
        """
        # Executor and launcher are one release: a missing or unknown field is damage, not skew.
        values = dict(record)
        try:
            ranks = [RankOrder(**one) for one in values.pop("ranks")]  # type: ignore[attr-defined]
            order = cls(ranks=ranks, **values)  # type: ignore[arg-type]
        except (TypeError, KeyError) as error:
            raise ValueError(f"not a launch order: {error}") from error
        if not order.ranks:
            raise ValueError("not a launch order: it has no ranks")
        return order
