"""Following one job: `submit --wait` and `logs`, and the exit codes that mirror its end."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from scheduler.cli.context import Session
from scheduler.cli.exits import ExitCode
from scheduler.cli.render import hint
from scheduler.cli.text import clean_log, coloured, duration, paint
from scheduler.errors import HaversackError, UnreachableError

if TYPE_CHECKING:
    from api.client import Client
    from api.schemas import AttemptOut, JobDetailOut, JobOut

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 1.0
_AWAY_MAX_S = 60.0
_NODES_SHOWN = 3
_PHASES = {
    "PENDING": "queued",
    "HELD": "held (release it with `haversack release`)",
    "QUARANTINED": "quarantined (see `haversack explain`)",
    "ASSIGNED": "placed",
    "LAUNCHING": "placed, starting",
    "RUNNING": "running",
    "SUSPECT": "running, but silent",
    "LOST": "lost, being sorted out",
    "STOPPING": "stopping",
    "SUCCEEDED": "succeeded",
    "FAILED": "failed",
    "CANCELLED": "cancelled",
}
_MIRRORS = {
    "SUCCEEDED": ExitCode.OK,
    "FAILED": ExitCode.JOB_FAILED,
    "CANCELLED": ExitCode.JOB_CANCELLED,
}
_ATTEMPT_MIRRORS = {
    "completed": ExitCode.OK,
    "cancelled": ExitCode.JOB_CANCELLED,
    "preempted": ExitCode.JOB_PREEMPTED,
}


class NodeNames:
    """Names of nodes by id, each asked for once; a node that cannot be had keeps its id."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._known: dict[str, str] = {}

    def __call__(self, node_id: str) -> str:
        """The name of `node_id`, or the id itself."""
        if node_id not in self._known:
            try:
                self._known[node_id] = self._client.node(node_id)["name"]
            except HaversackError:
                self._known[node_id] = node_id
        return self._known[node_id]


def mirror(state: str) -> ExitCode:
    """The exit code that mirrors a job in `state`."""
    return _MIRRORS.get(state, ExitCode.JOB_STILL_RUNNING)


def attempt_mirror(cause: str | None) -> ExitCode:
    """The exit code that mirrors an attempt that ended for `cause`."""
    return _ATTEMPT_MIRRORS.get(cause or "", ExitCode.JOB_FAILED)


def detached(job: JobOut) -> ExitCode:
    """Ctrl-C: say that the job goes on, and how to come back to it or stop it."""
    hint(
        f"detached: {job['name']} ({job['id']}) goes on;"
        f" follow it with `haversack logs -f {job['id']}`,"
        f" stop it with `haversack cancel {job['id']}`"
    )
    return ExitCode.JOB_STILL_RUNNING


# -- waiting ----------------------------------------------------------------------------------


def wait(
    session: Session, client: Client, job: JobOut, *, attempt_only: bool, timeout_s: float | None
) -> tuple[ExitCode, JobDetailOut | None]:
    """Wait until the job (or its attempt under way, or its next one) is over.

    Survives a restart of the daemon of up to a minute.

    Returns:
        The mirroring exit code, and the job as last seen (None if it never was).

    Raises:
        UnreachableError: the daemon stayed away.
    """
    seen: JobDetailOut | None = None
    number = max(1, job["attempt_count"])
    started = session.clock.monotonic_s()
    try:
        with _progress(session, client, job) as tell:
            for seen in _states(session, client, job["id"], timeout_s):
                tell(seen)
                if seen["state"] in _MIRRORS:
                    return mirror(seen["state"]), seen
                ended = _ended_attempt(seen, number) if attempt_only else None
                if ended is not None:
                    return attempt_mirror(ended["end_cause"]), seen
    except KeyboardInterrupt:
        return detached(job), seen
    waited = duration(session.clock.monotonic_s() - started)
    hint(
        f"still {_PHASES.get(seen['state'], seen['state']) if seen else 'unknown'} after {waited};"
        f" the job goes on: haversack logs -f {job['id']}"
    )
    return ExitCode.JOB_STILL_RUNNING, seen


def _states(
    session: Session, client: Client, job_id: str, timeout_s: float | None
) -> Iterator[JobDetailOut]:
    """The job, polled ever more slowly until `timeout_s` has passed."""
    start = last_news = session.clock.monotonic_s()
    pause, version = _FIRST_PAUSE_S, -1
    while True:
        try:
            job = client.job(job_id)
        except UnreachableError:
            if session.clock.monotonic_s() - last_news > _AWAY_MAX_S:
                raise
        else:
            last_news = session.clock.monotonic_s()
            # Something happened: more may follow soon.
            pause = _FIRST_PAUSE_S if job["version"] != version else pause
            version = job["version"]
            yield job
        left = None if timeout_s is None else start + timeout_s - session.clock.monotonic_s()
        if left is not None and left <= 0:
            return
        session.sleep(pause if left is None else min(pause, left))
        pause = min(_LONGEST_PAUSE_S, pause * 1.5)


def _ended_attempt(job: JobDetailOut, number: int) -> AttemptOut | None:
    for attempt in job["attempts"]:
        if attempt["number"] == number and attempt["ended_at"] is not None:
            return attempt
    return None


@contextmanager
def _progress(
    session: Session, client: Client, job: JobOut
) -> Iterator[Callable[[JobDetailOut], None]]:
    """Tells each phase: one live line on a terminal, one line per phase elsewhere."""
    node_name = NodeNames(client)
    start = session.clock.monotonic_s()
    if sys.stderr.isatty() and not session.environ.get("CI"):
        from rich.console import Console  # noqa: PLC0415 - only a terminal needs it
        from rich.text import Text  # noqa: PLC0415 - see above

        console = Console(stderr=True)
        with console.status(Text(f"{job['name']}: queued")) as status:

            def live(seen: JobDetailOut) -> None:
                passed = duration(session.clock.monotonic_s() - start)
                status.update(Text(f"{job['name']}: {phase_of(seen, node_name)}  {passed}"))

            yield live
        return
    told = ""

    def line(seen: JobDetailOut) -> None:
        nonlocal told
        phase = phase_of(seen, node_name)
        if phase != told:
            told = phase
            hint(f"{job['name']}: {phase}")

    yield line


def phase_of(job: JobDetailOut, node_name: Callable[[str], str]) -> str:
    """Where the job stands, in words, with attempt and nodes once it is placed."""
    words = _PHASES.get(job["state"], job["state"])
    live = [attempt for attempt in job["attempts"] if attempt["live"]]
    if live:
        nodes = sorted({task["node_id"] for task in live[-1]["tasks"]})
        more = len(nodes) - _NODES_SHOWN
        shown = ", ".join(map(node_name, nodes[:_NODES_SHOWN]))
        shown += f" and {more} more" if more > 0 else ""
        words += f" (attempt {live[-1]['number']} on {shown})"
    return words


def tell_end(job: JobOut) -> None:
    """Say how the job stands now, and what to do next if it did not succeed."""
    words = _PHASES.get(job["state"], job["state"])
    code = f", exit code {job['exit_code']}" if job["exit_code"] is not None else ""
    hint(f"{job['name']} ({job['id']}) {words}{code}")
    if job["state"] == "FAILED":
        if job["message"]:
            hint(f"  {job['message']}")
        hint(f"next: haversack logs {job['id']} --rank all; haversack describe {job['id']}")


# -- logs -------------------------------------------------------------------------------------


class LogPrinter:
    """Writes log pieces to stdout: whole lines with a rank prefix when there are several ranks."""

    _RANK_COLOURS = ("cyan", "green", "yellow", "red")

    def __init__(self, *, prefixed: bool) -> None:
        self._prefixed = prefixed
        self._partial: dict[int, str] = {}
        self._terminal = coloured(sys.stdout) or sys.stdout.isatty()

    def piece(self, rank: int, data: str) -> None:
        """Write `data` of `rank`; an unfinished last line waits for its rest when prefixed."""
        if not self._prefixed:
            self._write(data)
            return
        *lines, rest = (self._partial.pop(rank, "") + data).split("\n")
        for text in lines:
            self._line(rank, text)
        if rest:
            self._partial[rank] = rest

    def finish(self) -> None:
        """Write what is left of unfinished lines."""
        for rank, text in sorted(self._partial.items()):
            self._line(rank, text)
        self._partial.clear()
        sys.stdout.flush()

    def _line(self, rank: int, text: str) -> None:
        colour = self._RANK_COLOURS[rank % len(self._RANK_COLOURS)]
        self._write(f"{paint(f'[{rank}]', colour, sys.stdout)} {text}\n")

    def _write(self, text: str) -> None:
        # A pipe gets the log as it is; a terminal must not be steered by it.
        sys.stdout.write(clean_log(text) if self._terminal else text)
        sys.stdout.flush()


def print_logs(
    client: Client, job_id: str, *, rank: int | None, tail: int | None, attempt: int | None
) -> int:
    """Write what the log holds now; `rank` None means all ranks, one after the other.

    Returns:
        Byte offset behind what was read (of the last rank).
    """
    if rank is not None:
        ranks = [rank]
    else:
        chunks = client.all_logs(job_id, limit=1, attempt=attempt)["chunks"]
        ranks = [chunk["rank"] for chunk in chunks]
    printer = LogPrinter(prefixed=len(ranks) > 1)
    offset = 0
    for number in ranks:
        pieces = _pieces(client, job_id, number, attempt)
        if tail is None:
            for data, offset in pieces:  # noqa: B007 - the last offset is the answer
                printer.piece(number, data)
        else:
            text, offset = _last_lines(pieces, tail)
            printer.piece(number, text)
        printer.finish()
    return offset


def _pieces(
    client: Client, job_id: str, rank: int, attempt: int | None
) -> Iterator[tuple[str, int]]:
    offset = 0
    while True:
        chunk = client.logs(job_id, rank=rank, offset=offset, attempt=attempt)
        yield chunk["data"], chunk["next_offset"]
        if chunk["end"] or chunk["next_offset"] == offset:
            return
        offset = chunk["next_offset"]


def _last_lines(pieces: Iterator[tuple[str, int]], count: int) -> tuple[str, int]:
    """The last `count` lines, and the offset behind them; keeps only that much in memory."""
    kept: deque[str] = deque(maxlen=count)
    partial, offset = "", 0
    for data, offset in pieces:  # noqa: B007 - the last offset is the answer
        *lines, partial = (partial + data).split("\n")
        kept.extend(f"{line}\n" for line in lines)
    if partial:
        kept.append(partial)
    return "".join(kept), offset


def follow(
    client: Client, job: JobOut, *, rank: int | str, offset: int, attempt: int | None
) -> ExitCode:
    """Write the log as it grows until the job is over; its end is told on stderr.

    Raises:
        UnreachableError: the daemon stayed away for a minute.
    """
    printer = LogPrinter(prefixed=rank == "all")
    end: dict[str, Any] | None = None
    try:
        for record in client.follow_logs(job["id"], rank=rank, offset=offset, attempt=attempt):
            if "data" in record:
                printer.piece(record["rank"], record["data"])
            elif record.get("end") is True:
                end = record
            elif "attempt" in record:
                printer.finish()
                hint(f"attempt {record['attempt']} goes on")
    except KeyboardInterrupt:
        printer.finish()
        return detached(job)
    printer.finish()
    if end is None:
        hint("the log stream ended without a final record; the job's state is not known")
        return ExitCode.JOB_STILL_RUNNING
    code = "" if end.get("exit_code") is None else f", exit code {end['exit_code']}"
    why = f": {end['message']}" if end.get("message") else ""
    hint(f"end of log: {job['name']} ({job['id']}) {end['state']}{code}{why}")
    return mirror(str(end["state"]))
