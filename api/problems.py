"""Our errors as RFC 9457 problems, and back: the one table that server and client share."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from http import HTTPStatus
from typing import Any

from api.schemas import FieldProblemOut, ProblemOut
from scheduler.errors import (
    BusyError,
    ConflictError,
    DamagedStoreError,
    FencedError,
    FieldProblem,
    ForbiddenError,
    HaversackError,
    IdempotencyError,
    InfeasibleError,
    InvalidRequestError,
    NotFoundError,
    NotLeaderError,
    OverloadedError,
    PreconditionError,
    StorageError,
    TooLargeError,
    UnauthenticatedError,
)

MEDIA_TYPE = "application/problem+json"
STORAGE_RETRY_S = 5.0

_STATUS: dict[type[HaversackError], tuple[HTTPStatus, str]] = {
    InvalidRequestError: (HTTPStatus.UNPROCESSABLE_ENTITY, "The request is not valid"),
    UnauthenticatedError: (HTTPStatus.UNAUTHORIZED, "Who are you?"),
    ForbiddenError: (HTTPStatus.FORBIDDEN, "Your role does not grant this"),
    NotFoundError: (HTTPStatus.NOT_FOUND, "No such object"),
    ConflictError: (HTTPStatus.CONFLICT, "The object's state forbids it"),
    PreconditionError: (HTTPStatus.PRECONDITION_FAILED, "The object changed meanwhile"),
    TooLargeError: (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The request body is too large"),
    InfeasibleError: (HTTPStatus.UNPROCESSABLE_ENTITY, "No node set could ever run this"),
    IdempotencyError: (HTTPStatus.UNPROCESSABLE_ENTITY, "The idempotency key was used before"),
    OverloadedError: (HTTPStatus.TOO_MANY_REQUESTS, "A limit was reached"),
    BusyError: (HTTPStatus.SERVICE_UNAVAILABLE, "The daemon is busy"),
    StorageError: (HTTPStatus.SERVICE_UNAVAILABLE, "The store cannot be used now"),
    DamagedStoreError: (HTTPStatus.SERVICE_UNAVAILABLE, "The store has failed"),
    FencedError: (HTTPStatus.SERVICE_UNAVAILABLE, "Another leader has taken over"),
    NotLeaderError: (HTTPStatus.SERVICE_UNAVAILABLE, "This replica does not lead"),
}
_BY_CODE = {kind.code: kind for kind in _STATUS}


@dataclass(frozen=True, slots=True)
class Problem:
    """A refusal, ready to be sent.

    Attributes:
        title: the same for every problem of this `code`.
        detail: what happened this time.
        extra: further members (`problems`, `dimension`).
        headers: header names in lower case.
    """

    status: int
    code: str
    title: str
    detail: str
    hint: str = ""
    extra: Mapping[str, object] | None = None
    headers: tuple[tuple[str, str], ...] = ()

    def document(self, request_id: str) -> ProblemOut:
        """The problem as its wire type."""
        document: dict[str, object] = {
            "type": f"urn:haversack:problem:{self.code}",
            "title": self.title,
            "status": int(self.status),
            "detail": self.detail,
            "code": self.code,
            "hint": self.hint,
            "request_id": request_id,
            **(self.extra or {}),
        }
        return document  # type: ignore[return-value]  # `extra` is built below, to the wire type


def retry_after(seconds: float) -> tuple[str, str]:
    """The Retry-After header: whole seconds, at least one."""
    return ("retry-after", str(max(1, math.ceil(seconds))))


def problem_of(error: HaversackError) -> Problem:
    """The problem that stands for one of our errors; an unlisted one is a 500."""
    status, title = HTTPStatus.INTERNAL_SERVER_ERROR, "The daemon failed"
    for kind in type(error).__mro__:
        if kind in _STATUS:
            status, title = _STATUS[kind]
            break
    extra: dict[str, object] = {}
    headers: tuple[tuple[str, str], ...] = ()
    if isinstance(error, InvalidRequestError) and error.problems:
        extra["problems"] = [_field_out(problem) for problem in error.problems]
    if isinstance(error, InfeasibleError):
        extra["dimension"] = error.dimension
    if isinstance(error, OverloadedError):
        headers = (retry_after(error.retry_after_s),)
    elif status is HTTPStatus.SERVICE_UNAVAILABLE:
        headers = (retry_after(STORAGE_RETRY_S),)
    elif status is HTTPStatus.UNAUTHORIZED:
        headers = (("www-authenticate", 'Bearer realm="haversack"'),)
    return Problem(
        status=status,
        code=error.code,
        title=title,
        detail=str(error),
        hint=error.hint,
        extra=extra,
        headers=headers,
    )


def _field_out(problem: FieldProblem) -> FieldProblemOut:
    fields = asdict(problem)
    return {
        "path": fields["path"],
        "message": fields["message"],
        "line": fields["line"],
        "column": fields["column"],
        "suggestion": fields["suggestion"],
    }


def error_of(status: int, content: bytes, headers: Mapping[str, str]) -> HaversackError:
    """The error that a refused answer stands for; never raises.

    Args:
        status: HTTP status, 400 or above.
        content: the body; anything but a problem of ours is quoted as far as it helps.
        headers: response headers, looked up in lower case.
    """
    document = _document(content)
    detail = str(document.get("detail") or f"the server answered {status} {_phrase(status)}")
    hint = str(document.get("hint") or "")
    kind = _BY_CODE.get(str(document.get("code")), _by_status(status))
    if issubclass(kind, InvalidRequestError):
        return kind(detail, problems=_fields_in(document.get("problems")), hint=hint)
    if issubclass(kind, InfeasibleError):
        return kind(detail, dimension=str(document.get("dimension", "")), hint=hint)
    if issubclass(kind, OverloadedError):
        return kind(detail, retry_after_s=_seconds(headers.get("retry-after")), hint=hint)
    return kind(detail, hint=hint)


def _document(content: bytes) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def _by_status(status: int) -> type[HaversackError]:
    exact: dict[int, type[HaversackError]] = {
        HTTPStatus.UNAUTHORIZED: UnauthenticatedError,
        HTTPStatus.FORBIDDEN: ForbiddenError,
        HTTPStatus.NOT_FOUND: NotFoundError,
        HTTPStatus.CONFLICT: ConflictError,
        HTTPStatus.PRECONDITION_FAILED: PreconditionError,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE: TooLargeError,
        HTTPStatus.TOO_MANY_REQUESTS: OverloadedError,
        HTTPStatus.SERVICE_UNAVAILABLE: BusyError,
    }
    if status in exact:
        return exact[status]
    client_fault = HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR
    return InvalidRequestError if client_fault else HaversackError


def _fields_in(value: object) -> tuple[FieldProblem, ...]:
    if not isinstance(value, list):
        return ()
    return tuple(
        FieldProblem(
            path=str(item.get("path", "")),
            message=str(item.get("message", "")),
            line=item.get("line"),
            column=item.get("column"),
            suggestion=item.get("suggestion"),
        )
        for item in value
        if isinstance(item, dict)
    )


def _seconds(text: str | None) -> float:
    try:
        return float(text) if text is not None else 1.0
    except ValueError:
        return 1.0
