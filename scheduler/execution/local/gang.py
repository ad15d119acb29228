"""Runs one attempt from its claim to the proof that nothing of it is left.

Part of the launcher: standard library only, single threaded. The launcher is the subreaper of all
that its ranks ever start, so `waitpid` answering ECHILD *is* that proof; only then exit.json is
written. Time limits run on the monotonic clock.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time

from scheduler.execution.local import process
from scheduler.execution.local.files import AttemptFolder, Reserved
from scheduler.execution.local.orders import GangOrder
from scheduler.execution.local.rank_log import CappedLog
from scheduler.execution.local.ranks import StartError, start_rank

_CHUNK_BYTES = 65_536
_KILL_ROUND_S, _KILL_ROUND_S_MAX = 0.02, 1.0
_RETRY_S = 1.0
_HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


def failpoint(name: str) -> None:
    """Fail here if a test armed this point. Imports nothing otherwise: start time counts."""
    if "HAVERSACK_FAILPOINTS" in os.environ:
        from scheduler import failpoints  # noqa: PLC0415 - see above

        failpoints.hit(name)


class Rank:
    """A started rank: its process, its output, and how it ended."""

    __slots__ = ("ended", "log", "output", "pid", "rank", "start_ticks", "status")

    def __init__(self, rank: int, pid: int, output: int, log: CappedLog) -> None:
        self.rank = rank
        self.pid = pid
        self.start_ticks = process.identity_of(pid).start_ticks  # not reaped yet: it has one
        self.output = output
        self.log = log
        self.ended = False
        self.status = 0

    def exit_record(self) -> dict[str, object]:
        """Exit code or signal, and what its log lost."""
        signalled = os.WIFSIGNALED(self.status)
        return {
            "rank": self.rank,
            "exit_code": None if signalled else os.WEXITSTATUS(self.status),
            "signal": os.WTERMSIG(self.status) if signalled else None,
            "dropped_bytes": self.log.dropped_bytes,
        }


class Gang:
    """One attempt under way. The caller holds the claim, and has called `prepare_signals`."""

    def __init__(self, folder: AttemptFolder, order: GangOrder, exit_file: Reserved) -> None:
        self._folder = folder
        self._order = order
        self._exit_file = exit_file
        self._ranks: list[Rank] = []
        self._poller = select.poll()
        self._outputs: dict[int, Rank] = {}
        self._wake, wake_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_end, warn_on_full_buffer=False)
        self._poller.register(self._wake, select.POLLIN)
        self._begun_s = time.monotonic()
        self._begun_at = time.time()  # noqa: TID251 - scheduler.clock is not for launchers
        self._started_s: float | None = None
        self._store_start_at_s: float | None = None
        self._cause: str | None = None
        self._message = ""
        self._first_failure: Rank | None = None
        self._kill_at_s: float | None = None
        self._kill_round_s = _KILL_ROUND_S
        self._signalled = False
        self._gone = False

    def run(self) -> None:
        """Start every rank, see the gang to its end, and publish exit.json."""
        self._start()  # signals are still held back: no handler may run between fork and exec
        self._reap()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
        self._read_stop_order()
        while not self._gone:
            self._wait()
            if self._signalled:
                self._signalled = False
                self._read_stop_order(asked=True)
            self._reap()
            self._keep_time()
        self._drain()
        self._publish_exit()

    def asked_to_stop(self) -> None:
        """A stop signal arrived (called from its handler)."""
        self._signalled = True

    # --- starting -------------------------------------------------------------------------------

    def _start(self) -> None:
        try:
            workdir = self._order.workdir or self._own_workdir()
            extra = self._master_port()
            for order in self._order.ranks:
                self._start_rank(order.rank, order.argv, order.env | extra, workdir)
                failpoint("launcher-after-fork")
        except StartError as error:
            self._stop("user" if error.users_fault else "infrastructure", str(error), 0.0)
        except OSError as error:
            self._stop("infrastructure", f"cannot start the gang: {error}", 0.0)
        else:
            self._started_s = time.monotonic()
            self._store_start()

    def _own_workdir(self) -> str:
        path = self._folder.file("work")
        os.makedirs(path, mode=0o700, exist_ok=True)  # noqa: PTH103
        return path

    def _master_port(self) -> dict[str, str]:
        if not self._order.master_port:
            return {}
        # Imported here: sockets would cost every other launcher a tenth of its start.
        from scheduler.execution.local.master_port import lease_master_port  # noqa: PLC0415

        start = int.from_bytes(self._order.attempt_id.encode()[-4:], "big")
        port = str(lease_master_port(self._folder.data_dir, start))
        return {"MASTER_PORT": port, "PET_MASTER_PORT": port}

    def _start_rank(self, number: int, argv: list[str], env: dict[str, str], workdir: str) -> None:
        log = CappedLog(self._folder.rank_log(number), self._order.log_bytes_max)
        output, output_end = os.pipe2(os.O_CLOEXEC)
        try:
            pid = start_rank(argv, env, workdir, output_end, self._order.open_files_max)
        except StartError as error:
            os.close(output)
            log.write(f"[haversack] {error}\n".encode())
            log.close()
            raise
        finally:
            os.close(output_end)
        os.set_blocking(output, False)
        rank = Rank(number, pid, output, log)
        self._ranks.append(rank)
        self._outputs[output] = rank
        self._poller.register(output, select.POLLIN)

    def _store_start(self) -> None:
        record: dict[str, object] = {
            "started_at": self._at(self._started_s),
            "leaders": [[rank.pid, rank.start_ticks] for rank in self._ranks],
        }
        try:
            self._folder.write("started.json", record)
        except OSError:  # disk full: no reason to end the gang
            self._store_start_at_s = time.monotonic() + _RETRY_S
        else:
            self._store_start_at_s = None
            _notify(self._folder)

    # --- living ---------------------------------------------------------------------------------

    def _wait(self) -> None:
        now = time.monotonic()
        moments = (self._kill_at_s, self._deadline_s(), self._store_start_at_s)
        due_s = min((moment for moment in moments if moment is not None), default=None)
        timeout_ms = None if due_s is None else max(due_s - now, 0.001) * 1000
        for descriptor, _ in self._poller.poll(timeout_ms):
            if descriptor == self._wake:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake, 4096)
            else:
                self._pump(descriptor)

    def _pump(self, descriptor: int) -> bool:
        """Move one chunk of output to its log. False when there is none now, or never again."""
        rank = self._outputs[descriptor]
        try:
            data = os.read(descriptor, _CHUNK_BYTES)
        except BlockingIOError:
            return False
        if data:
            rank.log.write(data)
            return True
        self._poller.unregister(descriptor)
        del self._outputs[descriptor]
        os.close(descriptor)
        return False

    def _drain(self) -> None:
        for descriptor in list(self._outputs):
            while self._pump(descriptor):
                pass
        for rank in self._ranks:
            rank.log.close()

    def _reap(self) -> None:
        now = time.monotonic()
        by_pid = {rank.pid: rank for rank in self._ranks if not rank.ended}
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self._gone = True
                return
            if pid == 0:
                break
            rank = by_pid.get(pid)
            if rank is not None:  # else an orphan of a rank, which we inherited
                rank.ended = True
                rank.status = status
                if status != 0 and self._cause is None:
                    self._first_failure = rank
                    self._stop("user", _failure(rank), self._order.grace_s)
        if all(rank.ended for rank in self._ranks):
            # Whatever a rank left behind ends with it, at once.
            self._kill_at_s = min(self._kill_at_s or now, now)

    # --- stopping -------------------------------------------------------------------------------

    def _deadline_s(self) -> float | None:
        if self._started_s is None or self._order.max_runtime_s is None or self._cause is not None:
            return None
        return self._started_s + self._order.max_runtime_s

    def _keep_time(self) -> None:
        now = time.monotonic()
        deadline = self._deadline_s()
        if deadline is not None and now >= deadline:
            message = f"ran longer than max_runtime_s = {self._order.max_runtime_s:g}"
            self._stop("timed_out", message, self._order.grace_s)
        if self._store_start_at_s is not None and now >= self._store_start_at_s:
            self._store_start()
        if self._kill_at_s is not None and now >= self._kill_at_s:
            process.kill_all(process.descendants(os.getpid()))
            # In rounds, until nothing is left: a process may fork while we look, or be stuck in
            # the kernel for a while.
            self._kill_at_s = now + self._kill_round_s
            self._kill_round_s = min(2 * self._kill_round_s, _KILL_ROUND_S_MAX)

    def _read_stop_order(self, *, asked: bool = False) -> None:
        """Obey stop.json; a stop signal without one came from outside."""
        try:
            record = self._folder.read("stop.json")
        except (OSError, ValueError) as error:
            record = {"cause": "infrastructure", "message": f"unreadable stop order: {error}"}
        if record is not None:
            grace = record.get("grace_s")
            grace_s = float(grace) if isinstance(grace, int | float) else self._order.grace_s
            self._stop(str(record.get("cause")), str(record.get("message", "")), grace_s)
        elif asked:
            message = "the launcher was asked to end, and no stop order stands"
            self._stop("infrastructure", message, self._order.grace_s)

    def _stop(self, cause: str, message: str, grace_s: float) -> None:
        """Begin to end the gang. The first cause stands; later orders may shorten the grace."""
        kill_at_s = time.monotonic() + grace_s
        if self._kill_at_s is None or kill_at_s < self._kill_at_s:
            self._kill_at_s = kill_at_s
        if self._cause is not None:
            return
        self._cause = cause
        self._message = message
        for rank in self._ranks:
            if not rank.ended:  # not reaped: neither its pid nor its group can be anyone else's
                number = getattr(signal, self._order.stop_signal, signal.SIGTERM)
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(rank.pid, number)
                    os.killpg(rank.pid, signal.SIGCONT)

    # --- the end --------------------------------------------------------------------------------

    def _at(self, moment_s: float | None) -> float | None:
        """Wall time of a monotonic moment: no clock jump makes a run end before it began."""
        return None if moment_s is None else self._begun_at + (moment_s - self._begun_s)

    def _publish_exit(self) -> None:
        failpoint("launcher-before-exit-record")
        failure = self._first_failure
        record = {
            "cause": self._cause or "completed",
            "message": self._message,
            "started_at": self._at(self._started_s),
            "ended_at": self._at(time.monotonic()),
            "ranks": [rank.exit_record() for rank in self._ranks],
            "first_failure": None if failure is None else failure.exit_record(),
        }
        data = json.dumps(record).encode()
        while True:
            try:
                self._exit_file.publish(data)
            except FileNotFoundError:  # somebody removed the folder: nobody is left to tell
                return
            except OSError:  # without this record the GPUs stay held: nothing else is left to do
                time.sleep(_RETRY_S)
            else:
                return


def _failure(rank: Rank) -> str:
    if os.WIFSIGNALED(rank.status):
        number = os.WTERMSIG(rank.status)
        with contextlib.suppress(ValueError):
            return f"rank {rank.rank} was killed by {signal.Signals(number).name}"
        return f"rank {rank.rank} was killed by signal {number}"
    return f"rank {rank.rank} exited with code {os.WEXITSTATUS(rank.status)}"


def _notify(folder: AttemptFolder) -> None:
    """Hint to the daemon that something changed; it may be away, and finds out without it."""
    with contextlib.suppress(OSError):
        fifo = os.open(f"{folder.data_dir}/notify", os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        try:
            os.write(fifo, f"{folder.attempt_id}\n".encode())
        finally:
            os.close(fifo)


def prepare_signals() -> None:
    """Hold signals back until a gang listens: a stop order may follow the claim at once."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)


def supervise(folder: AttemptFolder, order: GangOrder, exit_file: Reserved) -> None:
    """Run a claimed attempt to its very end. Returns when exit.json is published."""
    gang = Gang(folder, order, exit_file)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: gang.asked_to_stop())
    signal.signal(signal.SIGHUP, lambda _number, _frame: None)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    gang.run()
