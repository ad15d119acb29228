"""Executes orders on this host: starts launchers, stops them, and tells the truth about them."""

from __future__ import annotations

import errno
import math
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from scheduler import failpoints
from scheduler.execution.local import launcher, process
from scheduler.execution.local.environment import TaskLimits, gang_order
from scheduler.execution.local.files import (
    AttemptFolder,
    Claim,
    highest_epoch,
    live_attempts,
)
from scheduler.execution.local.notices import Notices
from scheduler.execution.local.observation import (
    ended,
    exit_observation,
    rank_leaders,
    started_at,
)
from scheduler.model.execution import (
    AttemptObservation,
    LaunchOrder,
    Outcome,
    Phase,
    Receipt,
    StopOrder,
)
from scheduler.model.quantity import AttemptId

log = structlog.get_logger(__name__)

_ANSWER_S = 30.0
_ANSWER_BYTES_MAX = 4096
_KILL_ROUNDS = 25
_EMPTY_LOOKS = 2
_KILL_ROUND_S = 0.02
_PASSING = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EIO,
        errno.EAGAIN,
        errno.ENOMEM,
        errno.EMFILE,
        errno.ENFILE,
    }
)
"""Troubles of the host that pass: worth another try here, not the end of the placement."""


class LocalExecutor:
    """The Executor port for attempts on this host. Thread-safe; blocking.

    Every attempt has a launcher process that outlives this object and its daemon; what is known
    of an attempt is read from its folder and from /proc each time.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        env_allow: tuple[str, ...],
        log_bytes_max: int,
        open_files_max: int,
        launch_before_s: Callable[[], float] = lambda: math.inf,
    ) -> None:
        """Listen for launchers' news.

        Args:
            data_dir: the daemon's data directory; made when absent.
            env_allow: names of the daemon's environment that tasks inherit.
            log_bytes_max: cap of one rank's log file.
            open_files_max: RLIMIT_NOFILE of a rank.
            launch_before_s: seconds since boot after which a successor may lead: a launcher that
                comes up later starts nothing.

        Raises:
            OSError: the data directory is not usable.
        """
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._data_dir = str(data_dir.resolve())
        self._limits = TaskLimits(env_allow, log_bytes_max, open_files_max)
        self._launch_before_s = launch_before_s
        self._notices = Notices(Path(self._data_dir))

    def launch(self, order: LaunchOrder) -> Receipt:
        """Start the attempt unless it was ever started, or forbidden, before.

        DONE means that a launcher holds the claim. Takes as long as a launcher needs to come up
        (tens of milliseconds), at most 30 s.
        """
        folder = self._folder(order.attempt_id)
        try:
            claim = folder.claim()
            if claim is not None:
                return _told_by(claim)
            if problem := self._outdated(order.epoch):
                return self._refuse(folder, problem)
            folder.create()
            spelled = gang_order(order, self._limits, os.environ, self._launch_before_s())
            folder.write("order.json", spelled.to_record())
            failpoints.hit("launch-before-spawn")
            answer = self._spawn(folder)
        except OSError as error:
            message = f"cannot launch on this host: {error}"
            if error.errno in _PASSING:
                return Receipt(Outcome.UNKNOWN, message)
            return self._refuse(folder, message)
        except ValueError as error:
            return Receipt(Outcome.UNKNOWN, f"damaged attempt folder: {error}")
        try:
            failpoints.hit("launch-after-spawn")
            told = _read_answer(answer)
        finally:
            os.close(answer)
        return self._receipt(folder, told)

    def stop(self, order: StopOrder) -> Receipt:
        """Make sure the attempt ends, or never starts. Idempotent."""
        folder = self._folder(order.attempt_id)
        try:
            if problem := self._outdated(order.epoch):
                return Receipt(Outcome.REFUSED, problem)
            if ended(folder):
                return Receipt(Outcome.DONE)
            return self._stop(folder, order)
        except (OSError, ValueError) as error:
            return Receipt(Outcome.UNKNOWN, f"cannot stop on this host: {error}")

    def observe(self, attempt_id: AttemptId) -> AttemptObservation:
        """The truth about one attempt.

        Where its launcher was killed, this kills what the launcher left behind and answers
        VANISHED only when nothing of it is found any more (at most half a second).
        """
        folder = self._folder(attempt_id)
        try:
            return self._observe(folder, attempt_id)
        except (OSError, ValueError) as error:
            message = f"cannot read the attempt's records: {error}"
            return AttemptObservation(attempt_id, Phase.UNKNOWN, message=message)

    def watch(self, attempt_id: AttemptId, changed: Callable[[AttemptId], None]) -> None:
        """Call `changed` from another thread at the launcher's news and at its end.

        Calls it once at once when there may be something to see already.
        """
        self._notices.subscribe(attempt_id, changed)
        folder = self._folder(attempt_id)
        try:
            claim = folder.claim()
            waiting = claim is None or (
                claim.launcher is not None
                and self._notices.launcher_found(attempt_id, claim.launcher)
                and not folder.has("started.json")
            )
        except (OSError, ValueError) as error:
            log.warning("attempt cannot be watched", attempt=attempt_id, why=str(error))
            waiting = False
        if not waiting:
            changed(attempt_id)

    def known(self) -> Sequence[AttemptId]:
        """Attempts with a trace on this host whose end nobody has stored yet, sorted."""
        return [AttemptId(name) for name in live_attempts(self._data_dir)]

    def forget(self, attempt_id: AttemptId) -> None:
        """The attempt's end is stored: watch it no more. Its records and logs stay."""
        self._notices.unsubscribe(attempt_id)
        self._folder(attempt_id).forget()

    def close(self) -> None:
        """Stop listening; launchers and their attempts go on."""
        self._notices.close()

    def _folder(self, attempt_id: AttemptId) -> AttemptFolder:
        return AttemptFolder(self._data_dir, attempt_id)

    def _outdated(self, epoch: int) -> str:
        """Why an order of this epoch is not obeyed here; empty when it is. Raises OSError."""
        highest = highest_epoch(self._data_dir, epoch)
        if highest > epoch:
            return f"the order's epoch {epoch} is over; this host has seen {highest}"
        return ""

    def _spawn(self, folder: AttemptFolder) -> int:
        """Start a launcher; answers the descriptor on which it tells what became of it."""
        answer, answer_end = os.pipe2(os.O_CLOEXEC)
        try:
            env = {"LC_ALL": "C.UTF-8"} | failpoints.for_launcher()
            if "LD_LIBRARY_PATH" in os.environ:  # our own interpreter may need it
                env["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
            append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            # All else we hold open is close-on-exec; the session of its own lets it outlive us.
            pid = os.posix_spawn(
                sys.executable,
                [
                    sys.executable,
                    "-I",
                    "-S",
                    str(launcher.__file__),
                    self._data_dir,
                    folder.attempt_id,
                ],
                env,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, answer_end, 1),
                    (os.POSIX_SPAWN_OPEN, 2, folder.file("launcher.log"), append, 0o600),
                ],
                setsid=True,
                setsigmask=(),
            )
        except OSError:
            os.close(answer)
            raise
        finally:
            os.close(answer_end)
        self._notices.child_spawned(AttemptId(folder.attempt_id), pid)
        return answer

    def _receipt(self, folder: AttemptFolder, told: str | None) -> Receipt:
        if told is None:
            return Receipt(Outcome.UNKNOWN, f"no word from the launcher for {_ANSWER_S:g} s")
        word, _, reason = told.partition(" ")
        if word == launcher.CLAIMED:
            return Receipt(Outcome.DONE)
        if word == launcher.LATE:
            return Receipt(Outcome.UNKNOWN, "the lease ran out before the launcher was up")
        try:
            claim = folder.claim()
        except (OSError, ValueError) as error:
            return Receipt(Outcome.UNKNOWN, f"damaged attempt folder: {error}")
        if claim is not None:
            return _told_by(claim)
        return self._refuse(folder, f"the launcher did not start: {reason or 'see launcher.log'}")

    def _refuse(self, folder: AttemptFolder, message: str) -> Receipt:
        """REFUSED is a promise: put up the tombstone that keeps it."""
        try:
            folder.create()
            if folder.forbid(message):
                return Receipt(Outcome.REFUSED, message)
            claim = folder.claim()
        except (OSError, ValueError) as error:
            return Receipt(Outcome.UNKNOWN, f"{message}; and no tombstone: {error}")
        assert claim is not None, "forbid found a claim"
        return _told_by(claim)

    def _stop(self, folder: AttemptFolder, order: StopOrder) -> Receipt:
        claim = folder.claim()
        if claim is None:
            if not folder.has("order.json") and (left := _kill_marked(order.attempt_id)):
                # Never launched, or its folder was removed under it: believe only /proc.
                return Receipt(Outcome.UNKNOWN, f"processes of it are still there: {left}")
            folder.create()
            if folder.forbid(f"stopped before it started: {order.cause}"):
                return Receipt(Outcome.DONE)
            claim = folder.claim()
        if claim is None or claim.launcher is None:
            return Receipt(Outcome.DONE)
        try:
            self._record_stop(folder, order)
        except OSError:
            # A full disk: perhaps this very job filled it. It ends, and the caller tries again
            # until the cause is written or the attempt is over.
            process.send(claim.launcher, signal.SIGTERM)
            raise
        process.send(claim.launcher, signal.SIGTERM)
        return Receipt(Outcome.DONE)

    def _record_stop(self, folder: AttemptFolder, order: StopOrder) -> None:
        """Write stop.json; the first cause stands, the shortest grace counts."""
        record: dict[str, object] = {"cause": str(order.cause), "grace_s": order.grace_s}
        before = folder.read("stop.json")
        if before is not None:
            grace = before.get("grace_s")
            if isinstance(grace, int | float) and grace <= order.grace_s:
                return
            record["cause"] = before.get("cause")
        folder.write("stop.json", record)

    def _observe(self, folder: AttemptFolder, attempt_id: AttemptId) -> AttemptObservation:
        if (exit_record := folder.read("exit.json")) is not None:
            return exit_observation(attempt_id, exit_record)
        claim = folder.claim()
        if claim is None:
            return AttemptObservation(attempt_id, Phase.UNCLAIMED)
        if claim.launcher is None:
            return AttemptObservation(attempt_id, Phase.ABSENT, message=claim.message)
        begun = started_at(folder)
        if claim.launcher.alive():
            phase = Phase.STARTING if begun is None else Phase.RUNNING
            return AttemptObservation(attempt_id, phase, started_at=begun)
        # It may have written its last word between our two looks.
        if (exit_record := folder.read("exit.json")) is not None:
            return exit_observation(attempt_id, exit_record)
        phase, message = self._prove_gone(folder, claim.launcher)
        return AttemptObservation(attempt_id, phase, started_at=begun, message=message)

    def _prove_gone(self, folder: AttemptFolder, dead: process.Identity) -> tuple[Phase, str]:
        """Kill what a dead launcher left behind; VANISHED only when nothing of it is found."""
        found = folder.read("vanished.json")
        if found is not None:
            return Phase.VANISHED, str(found.get("message", ""))
        message = "the launcher was killed; nothing of the attempt is left"
        if dead.boot_id != process.boot_id():
            message = "the host was rebooted"
        elif left := _kill_marked(folder.attempt_id, rank_leaders(folder, dead.boot_id)):
            return Phase.UNKNOWN, f"the launcher is dead, its processes are not: {left}"
        folder.write("vanished.json", {"message": message})
        return Phase.VANISHED, message


def _kill_marked(attempt_id: str, leaders: Sequence[process.Identity] = ()) -> str:
    """Kill every process known to be the attempt's; the pids that would not die, or none.

    Two empty looks in a row are the proof: a fork may slip past one.
    """
    empty_looks = 0
    for _ in range(_KILL_ROUNDS):
        left = process.marked(attempt_id, leaders)
        empty_looks = 0 if left else empty_looks + 1
        if empty_looks == _EMPTY_LOOKS:
            return ""
        process.kill_all(left)
        if left:
            time.sleep(_KILL_ROUND_S)
    return ", ".join(str(identity.pid) for identity in left) or "some that come and go"


def _told_by(claim: Claim) -> Receipt:
    if claim.launcher is None:
        return Receipt(Outcome.REFUSED, claim.message)
    return Receipt(Outcome.DONE)


def _read_answer(descriptor: int) -> str | None:
    """The launcher's first line; empty when it died silent, None when it takes too long."""
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    if not poller.poll(_ANSWER_S * 1000):
        return None
    # One write of less than PIPE_BUF bytes: the line comes whole.
    return os.read(descriptor, _ANSWER_BYTES_MAX).decode(errors="replace").strip()
