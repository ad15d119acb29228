"""What an API server says when it refuses: Status objects, worded as kube-apiserver words them."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

_STALE = (
    "the object has been modified; please apply your changes to the latest version and try again"
)


class RefusedError(Exception):
    """A request that is answered with a Status instead of an object.

    Attributes:
        code: HTTP status.
        reason: machine-readable reason, `Conflict` for instance; empty where the server has none.
        retry_after_s: what the header Retry-After says, where there is one.
    """

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        *,
        details: Json | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.retry_after_s = retry_after_s
        self._details = details

    def status(self) -> Json:
        """The Status object of the answer."""
        body: Json = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": str(self),
        }
        if self.reason:
            body["reason"] = self.reason
        details = dict(self._details or {})
        if self.retry_after_s is not None:
            details["retryAfterSeconds"] = self.retry_after_s
        if details or self.reason == "NotFound":
            body["details"] = details
        body["code"] = self.code
        return body


def success(code: int, details: Json | None = None) -> Json:
    """The Status object of a request that has no object to answer with."""
    body: Json = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
    if details:
        body["details"] = details
    if code != 200:
        body["code"] = code
    return body


def _named(resource: str, name: str) -> Json:
    kind, _, group = resource.partition(".")
    return {"name": name, **({"group": group} if group else {}), "kind": kind}


def bad_request(message: str) -> RefusedError:
    """400."""
    return RefusedError(400, "BadRequest", message)


def unauthorized() -> RefusedError:
    """401: no token, or one that nobody knows."""
    return RefusedError(401, "Unauthorized", "Unauthorized")


def forbidden(resource: str, name: str, why: str) -> RefusedError:
    """403."""
    shown = f'{resource} "{name}"' if name else resource
    return RefusedError(
        403, "Forbidden", f"{shown} is forbidden: {why}", details=_named(resource, name)
    )


def not_found(resource: str, name: str) -> RefusedError:
    """404 for an object."""
    return RefusedError(
        404, "NotFound", f'{resource} "{name}" not found', details=_named(resource, name)
    )


def no_such_resource() -> RefusedError:
    """404 for a whole type, as in a group that is served but lacks it."""
    return RefusedError(404, "NotFound", "the server could not find the requested resource")


def already_exists(resource: str, name: str) -> RefusedError:
    """409 at creation."""
    return RefusedError(
        409, "AlreadyExists", f'{resource} "{name}" already exists', details=_named(resource, name)
    )


def conflict(resource: str, name: str, why: str = _STALE) -> RefusedError:
    """409 at a write."""
    return RefusedError(
        409,
        "Conflict",
        f'Operation cannot be fulfilled on {resource} "{name}": {why}',
        details=_named(resource, name),
    )


def expired(message: str) -> RefusedError:
    """410: the version is older than what the server remembers."""
    return RefusedError(410, "Expired", message)


def unsupported_media(content_type: str) -> RefusedError:
    """415: a patch in a form that this object does not take."""
    return RefusedError(
        415,
        "UnsupportedMediaType",
        f"the body of the request was in an unknown format - accepted media types do not include "
        f"{content_type}",
    )


def invalid(kind: str, name: str, field: str, why: str, *, group: str = "") -> RefusedError:
    """422 about one field; `why` begins with its class, for instance `Required value`."""
    shown = f"{kind}.{group}" if group else kind
    reasons = {
        "Required value": "FieldValueRequired",
        "Invalid value": "FieldValueInvalid",
        "Forbidden": "FieldValueForbidden",
        "Unsupported value": "FieldValueNotSupported",
    }
    cause = {
        "reason": reasons.get(why.partition(":")[0], "FieldValueInvalid"),
        "message": why,
        "field": field,
    }
    details = {"name": name, **({"group": group} if group else {}), "kind": kind, "causes": [cause]}
    if not name:
        del details["name"]
    return RefusedError(
        422, "Invalid", f'{shown} "{name}" is invalid: {field}: {why}', details=details
    )


def too_many(message: str, *, retry_after_s: int | None, cause: Json | None = None) -> RefusedError:
    """429."""
    details = {"causes": [cause]} if cause else None
    return RefusedError(
        429, "TooManyRequests", message, details=details, retry_after_s=retry_after_s
    )


def internal(message: str, reason: str = "InternalError") -> RefusedError:
    """500."""
    return RefusedError(500, reason, message)


def unavailable() -> RefusedError:
    """503."""
    return RefusedError(
        503, "ServiceUnavailable", "the server is currently unable to handle the request"
    )


def too_new(wanted: int, current: int) -> RefusedError:
    """504: a list at a version that does not exist yet."""
    cause = {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
    return RefusedError(
        504,
        "Timeout",
        f"Timeout: Too large resource version: {wanted}, current: {current}",
        details={"causes": [cause]},
        retry_after_s=1,
    )
