"""What went wrong, worded as kubectl words it; whatever it is, the exit status is 1."""

from __future__ import annotations

from typing import Final

from scheduler.cli.exits import problem_line
from scheduler.cli.text import clean
from scheduler.errors import (
    BusyError,
    ConfigurationError,
    ConflictError,
    FencedError,
    ForbiddenError,
    HaversackError,
    IdempotencyError,
    InfeasibleError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    StorageError,
    TooLargeError,
    UnauthenticatedError,
    UnreachableError,
)

FAILED: Final = 1
"""The exit status of whatever did not work out."""

_REASONS: Final[tuple[tuple[type[HaversackError], str], ...]] = (
    (NotFoundError, "NotFound"),
    (ForbiddenError, "Forbidden"),
    (ConflictError, "Conflict"),
    (IdempotencyError, "Conflict"),
    (InfeasibleError, "Invalid"),
    (InvalidRequestError, "BadRequest"),
    (TooLargeError, "RequestEntityTooLarge"),
    (BusyError, "ServiceUnavailable"),  # before what it is a kind of
    (OverloadedError, "TooManyRequests"),
    (StorageError, "ServiceUnavailable"),
    (FencedError, "ServiceUnavailable"),
)


class UsageError(HaversackError):
    """A command line that cannot be carried out."""

    code = "usage"


class InvalidFileError(InvalidRequestError):
    """A job file that is no job, as can be told without asking anybody."""


def refusal(error: HaversackError) -> str:
    """The lines for stderr."""
    lines = [_first_line(error)]
    if isinstance(error, InvalidRequestError):
        lines += [f"* {problem_line(problem).strip()}" for problem in error.problems]
    if error.hint:
        lines.append(f"hint: {clean(error.hint)}")
    return "\n".join(lines)


def not_found(resource: str, name: str, *, hint: str = "") -> NotFoundError:
    """The error of something that is not there: `jobs.haversack.dev "x" not found`."""
    return NotFoundError(f'{resource} "{name}" not found', hint=hint)


def _first_line(error: HaversackError) -> str:
    told = clean(str(error))
    if isinstance(error, UnreachableError):
        return f"Unable to connect to the server: {told}"
    if isinstance(error, UnauthenticatedError):
        return f"error: You must be logged in to the server (Unauthorized): {told}"
    if isinstance(error, UsageError | ConfigurationError | InvalidFileError):
        return f"error: {told}"
    reason = next((name for kind, name in _REASONS if isinstance(error, kind)), "InternalError")
    return f"Error from server ({reason}): {told}"
