"""From HTTP requests to what they mean, and back to answers."""

from __future__ import annotations

from typing import Any

import orjson
from aiohttp import web
from support.kubernetes.faults import Deed
from support.kubernetes.refusals import Json, RefusedError, bad_request
from support.kubernetes.resources import Target
from support.kubernetes.selectors import Selection, selection

_COMPRESSED_FROM_BYTES = 128 * 1024


def deed_of(request: web.Request, target: Target, user: str) -> Deed:
    """The verb of a request.

    Raises:
        RefusedError: 405, there is none for this method here.
    """
    what = target.resource.plural + (f"/{target.subresource}" if target.subresource else "")
    one = bool(target.name)
    watched = request.query.get("watch") in ("1", "true")
    match request.method, one:
        case "GET", _ if watched:
            verb = "watch"
        case "GET", _:
            verb = "get" if one else "list"
        case "POST", _ if one == bool(target.subresource):
            verb = "create"
        case "PUT", True:
            verb = "update"
        case "PATCH", True:
            verb = "patch"
        case "DELETE", _:
            verb = "delete" if one else "deletecollection"
        case _:
            raise RefusedError(
                405,
                "MethodNotAllowed",
                "the server does not allow this method on the requested resource",
            )
    return Deed(verb, what, user)


def selection_of(target: Target, query: dict[str, str]) -> Selection:
    """Which objects a list or a watch is about.

    Raises:
        RefusedError: 400, a selector cannot be read.
    """
    fields = query.get("fieldSelector", "")
    if target.name:
        fields = f"metadata.name={target.name}"
    return selection(target.resource, target.namespace, query.get("labelSelector", ""), fields)


def query_options(query: dict[str, str]) -> Json:
    """DeleteOptions of a deletion that has no body."""
    grace = query.get("gracePeriodSeconds")
    return {} if grace is None else {"gracePeriodSeconds": int(grace)}


async def body_of(request: web.Request) -> Any:
    """The JSON of a request; None without any.

    Raises:
        RefusedError: 400, it is no JSON.
    """
    data = await request.read()
    if not data:
        return None
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise bad_request(
            f"the object provided is unrecognized: json parse error: {error}"
        ) from error


def checked_kind(target: Target, document: Any) -> Json:
    """An object that is to be stored, if it is of the type of the path.

    Raises:
        RefusedError: 400.
    """
    resource = target.resource
    if not isinstance(document, dict):
        raise bad_request(f"the object provided is unrecognized (must be of type {resource.kind})")
    sent = document.get("kind", resource.kind)
    if not target.subresource and sent != resource.kind:
        raise bad_request(
            f'{sent} in version "{document.get("apiVersion")}" cannot be handled as a '
            f"{resource.kind}"
        )
    return document


def json_response(status: int, body: Json) -> web.Response:
    """An answer; compressed if it is long and the client takes that, as kube-apiserver does."""
    data = orjson.dumps(body)
    response = web.Response(status=status, body=data, content_type="application/json")
    if len(data) > _COMPRESSED_FROM_BYTES:
        response.enable_compression()
    return response


def cut(request: web.Request) -> None:
    """Close the connection without another byte."""
    if request.transport is not None:
        request.transport.abort()
