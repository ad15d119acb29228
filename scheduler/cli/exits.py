"""Exit codes, and how an error is told to a person."""

from __future__ import annotations

import sys
from enum import IntEnum

from scheduler.cli.text import clean, paint
from scheduler.errors import (
    AlreadyRunningError,
    ConfigurationError,
    ConflictError,
    FieldProblem,
    ForbiddenError,
    HaversackError,
    IdempotencyError,
    InfeasibleError,
    InvalidRequestError,
    NotFoundError,
    TooLargeError,
    UnauthenticatedError,
    UnreachableError,
)


class ExitCode(IntEnum):
    """What a command ends with; scripts rely on these. 100 and above mirror a job."""

    OK = 0
    ERROR = 1
    USAGE = 2
    NOT_FOUND = 3
    AUTH = 4
    CONFLICT = 5
    REJECTED = 6
    UNREACHABLE = 7
    TIMEOUT = 8
    JOB_FAILED = 100
    JOB_STILL_RUNNING = 101
    JOB_CANCELLED = 102
    JOB_PREEMPTED = 103


MEANINGS: dict[ExitCode, str] = {
    ExitCode.OK: "done; when waiting for or following a job: it succeeded",
    ExitCode.ERROR: "the daemon failed, is overloaded, or cannot write",
    ExitCode.USAGE: "wrong usage, settings that cannot work, or a job file that is not valid",
    ExitCode.NOT_FOUND: "no such job, node, GPU, token, tenant or decision",
    ExitCode.AUTH: "no token, a token that is not honoured, or a role that does not grant it",
    ExitCode.CONFLICT: (
        "the object's state forbids it, an idempotency key was reused, or another daemon runs there"
    ),
    ExitCode.REJECTED: "the job can never run on this cluster, or is too large to accept",
    ExitCode.UNREACHABLE: "no daemon answers",
    ExitCode.TIMEOUT: "the daemon took the request but did not answer in time",
    ExitCode.JOB_FAILED: "the job failed (`submit --wait`, `logs -f`)",
    ExitCode.JOB_STILL_RUNNING: "the job is not over: --timeout ran out, or Ctrl-C detached",
    ExitCode.JOB_CANCELLED: "the job was cancelled",
    ExitCode.JOB_PREEMPTED: "the attempt was preempted (`submit --wait=attempt` only)",
}
"""One line of documentation for each code."""

_CODES: tuple[tuple[type[HaversackError], ExitCode], ...] = (
    (InvalidRequestError, ExitCode.USAGE),
    (ConfigurationError, ExitCode.USAGE),
    (NotFoundError, ExitCode.NOT_FOUND),
    (UnauthenticatedError, ExitCode.AUTH),
    (ForbiddenError, ExitCode.AUTH),
    (ConflictError, ExitCode.CONFLICT),
    (IdempotencyError, ExitCode.CONFLICT),
    (AlreadyRunningError, ExitCode.CONFLICT),
    (InfeasibleError, ExitCode.REJECTED),
    (TooLargeError, ExitCode.REJECTED),
    (UnreachableError, ExitCode.UNREACHABLE),
)


def exit_code(error: HaversackError) -> ExitCode:
    """The exit code that stands for `error`."""
    if isinstance(error, UnreachableError) and _timed_out(error):
        return ExitCode.TIMEOUT
    return next((code for kind, code in _CODES if isinstance(error, kind)), ExitCode.ERROR)


def report(error: HaversackError, source: str = "") -> ExitCode:
    """Tell `error` on stderr and return its exit code.

    Args:
        error: what went wrong.
        source: file the field problems are in, if any.
    """
    lines = [f"{paint('error:', 'red', sys.stderr)} {clean(str(error))}"]
    if isinstance(error, InvalidRequestError):
        lines += [problem_line(problem, source) for problem in error.problems]
    if error.hint:
        lines.append(f"{paint('hint:', 'cyan', sys.stderr)} {clean(error.hint)}")
    sys.stderr.write("\n".join(lines) + "\n")
    return exit_code(error)


def problem_line(problem: FieldProblem, source: str = "") -> str:
    """One thing wrong with a document, with its place in the file `source`."""
    place = ":".join(str(part) for part in (source, problem.line, problem.column) if part)
    words = [part for part in (place, problem.path) if part]
    line = f"  at {' '.join(words)}: " if words else "  "
    line += problem.message
    if problem.suggestion:
        line += f" (did you mean {problem.suggestion!r}?)"
    return clean(line)


def _timed_out(error: UnreachableError) -> bool:
    # Read and write timeouts came after the connection stood: the daemon may have done the work.
    cause = type(error.__cause__).__name__
    return cause in ("ReadTimeout", "WriteTimeout")
