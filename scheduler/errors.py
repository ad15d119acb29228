"""Our exceptions. An expected "no" is a value with a reason; these are for the rest.

HaversackError
├── InvalidRequestError      the caller's fault; carries field problems
├── NotFoundError            no such object for this caller
├── ConflictError            the object's state forbids it
│   └── PreconditionError    If-Match or expected version is stale
├── InfeasibleError          no cluster of the declared size could ever run it
├── UnauthenticatedError     no identity, or none that is honoured
├── ForbiddenError           the role does not grant it
├── TooLargeError            the request body is over the bound
├── IdempotencyError         the key was used with another body
├── OverloadedError          a bound was reached; try later
│   └── BusyError            the bound is the daemon's own, not the caller's
├── UnreachableError         no daemon answers at the address (raised by the client)
├── StorageError             the store cannot write (disk full, read-only)
│   └── DamagedStoreError    what is on disk is in doubt: end, and start afresh
├── FencedError              another leader has taken over: stop acting
├── AlreadyRunningError      another daemon owns this data directory or database
│   └── NotLeaderError       another daemon leads; this one may stand by
└── ConfigurationError       the daemon refuses to start like this
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FieldProblem:
    """One thing wrong with a document.

    Attributes:
        path: dotted path of the field, for example `spec.task.gpus`.
        message: what is wrong and what to do.
        line: 1-based line in the document, when known.
        column: 1-based column, when known.
        suggestion: the name that was probably meant, if any.
    """

    path: str
    message: str
    line: int | None = None
    column: int | None = None
    suggestion: str | None = None


class HaversackError(Exception):
    """Base of all our errors.

    Attributes:
        code: stable machine-readable code (problem+json `code`).
        hint: what the caller can do about it.
    """

    code = "internal"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class InvalidRequestError(HaversackError):
    """The request is malformed; `problems` lists every field at fault."""

    code = "invalid-request"

    def __init__(
        self, message: str, *, problems: tuple[FieldProblem, ...] = (), hint: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.problems = problems


class NotFoundError(HaversackError):
    """No such object, or none that this caller may know of."""

    code = "not-found"


class ConflictError(HaversackError):
    """The object's state forbids the request."""

    code = "conflict"


class PreconditionError(ConflictError):
    """The object changed since the caller read it."""

    code = "precondition-failed"


class InfeasibleError(HaversackError):
    """The request exceeds the declared maximum of the cluster; `dimension` names the limit."""

    code = "infeasible"

    def __init__(self, message: str, *, dimension: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.dimension = dimension


class ForbiddenError(HaversackError):
    """The caller's role does not grant this."""

    code = "forbidden"


class UnauthenticatedError(HaversackError):
    """No identity was given, or none that is honoured (unknown, expired or revoked)."""

    code = "unauthenticated"


class TooLargeError(HaversackError):
    """The request body is over the bound."""

    code = "too-large"


class IdempotencyError(HaversackError):
    """The idempotency key was used before with another request body."""

    code = "idempotency-key-reused"


class OverloadedError(HaversackError):
    """A bound was reached; `retry_after_s` says when to try again."""

    code = "overloaded"

    def __init__(self, message: str, *, retry_after_s: float = 1.0, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class BusyError(OverloadedError):
    """A bound of the daemon itself was reached; no caller is to blame (503, not 429)."""

    code = "busy"


class UnreachableError(HaversackError):
    """No daemon answers at the address; raised by the client, with the address in the message."""

    code = "unreachable"


class StorageError(HaversackError):
    """The store cannot write now; nothing of the request was kept."""

    code = "storage-unavailable"


class DamagedStoreError(StorageError):
    """The disk may not hold what was written; only a fresh start can tell what it does hold."""

    code = "storage-damaged"


class FencedError(HaversackError):
    """A newer leader epoch exists; this process must stop acting."""

    code = "fenced"


class AlreadyRunningError(HaversackError):
    """Another daemon holds this data directory or leads this database."""

    code = "already-running"


class NotLeaderError(AlreadyRunningError):
    """Another daemon leads this database; the message names it."""

    code = "not-leader"


class ConfigurationError(HaversackError):
    """The settings are refused; the message says why and what to set."""

    code = "configuration"
