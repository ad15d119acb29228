"""Keyset pages: an opaque cursor holds the last row's sort key and id, never an offset.

So a page costs the same at any depth, and rows that appear or vanish meanwhile neither repeat nor
hide others.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, bindparam, tuple_

from scheduler.errors import InvalidRequestError
from scheduler.store.scoping import storable

LIMIT_MAX = 500
_EXACT_MAX = 2**53

SortKey = str | int | float


@dataclass(frozen=True, slots=True)
class Position:
    """The last row of a page: where the next one starts."""

    key: SortKey
    id: SortKey


def checked_limit(limit: int) -> int:
    """`limit` itself.

    Raises:
        InvalidRequestError: it is not within 1..500.
    """
    if not 1 <= limit <= LIMIT_MAX:
        raise InvalidRequestError(f"limit is {limit}; it must be from 1 to {LIMIT_MAX}")
    return limit


def encode(sort: str, position: Position) -> str:
    """An opaque cursor, URL-safe text without padding."""
    text = json.dumps([sort, position.key, position.id], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode(
    sort: str, cursor: str | None, key: type[SortKey], ident: type[SortKey]
) -> Position | None:
    """The position a cursor stands for; None for no cursor.

    Args:
        sort: the listing's sort name; a cursor of another sort is refused.
        cursor: text from `encode`, or anything else, since it comes from outside.
        key: type of the sort key; `float` accepts whole numbers too.
        ident: type of the id.

    Raises:
        InvalidRequestError: the cursor is not one of ours for this listing.
    """
    if cursor is None:
        return None
    wrong = InvalidRequestError(
        "cursor is malformed", hint="use next_cursor of the page before, with the same sort"
    )
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        found = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (ValueError, binascii.Error, RecursionError) as error:
        raise wrong from error
    match found:
        case [str(name), last_key, last_id] if (
            name == sort and _is(last_key, key) and _is(last_id, ident)
        ):
            return Position(last_key, last_id)
        case _:
            raise wrong


def _is(value: object, kind: type[SortKey]) -> bool:
    """Whether a decoded value is of `kind` and every database can hold it."""
    if isinstance(value, bool):
        return False
    if kind is str:
        return isinstance(value, str) and storable(value)
    if kind is float and isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and abs(value) <= _EXACT_MAX


def after(
    statement: Select[Any],
    key: ColumnElement[Any],
    ident: ColumnElement[Any],
    position: Position | None,
    *,
    descending: bool,
    limit: int,
) -> Select[Any]:
    """`statement` in (key, id) order, from behind `position`, with one row more than `limit`.

    The extra row tells whether there is a next page.
    """
    if position is not None:
        here = tuple_(key, ident)
        last = tuple_(bindparam("last_key", position.key), bindparam("last_id", position.id))
        statement = statement.where(here < last if descending else here > last)
    order = (key.desc(), ident.desc()) if descending else (key.asc(), ident.asc())
    return statement.order_by(*order).limit(limit + 1)
