from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.errors import InvalidRequestError
from scheduler.store.paging import Position, checked_limit, decode, encode


@given(st.floats(0, 4e9), st.from_regex(r"j-[0-9a-z]{16}", fullmatch=True))
def test_a_cursor_leads_back_to_its_position(key: float, ident: str) -> None:
    cursor = encode("-submitted_at", Position(key, ident))
    assert decode("-submitted_at", cursor, float, str) == Position(key, ident)


def test_no_cursor_is_the_first_page() -> None:
    assert decode("name", None, str, str) is None


def test_a_cursor_of_another_sort_is_refused() -> None:
    with pytest.raises(InvalidRequestError):
        decode("priority", encode("-priority", Position(1, "j-1")), int, str)


@given(st.text() | st.binary().map(lambda raw: base64.urlsafe_b64encode(raw).decode()))
def test_any_text_is_answered_with_invalid_request(cursor: str) -> None:
    with pytest.raises(InvalidRequestError):
        decode("name", cursor, str, str)


@pytest.mark.parametrize(
    "inside",
    [
        ["priority", True, "j-1"],
        ["priority", 1.5, "j-1"],
        ["priority", 2**63, "j-1"],
        ["priority", 1, "j\x00"],
        ["priority", 1, 7],
        ["priority", 1],
        {"priority": 1},
        float("inf"),
    ],
)
def test_what_a_database_could_not_hold_is_refused(inside: object) -> None:
    cursor = base64.urlsafe_b64encode(json.dumps(inside).encode()).decode().rstrip("=")
    with pytest.raises(InvalidRequestError):
        decode("priority", cursor, int, str)


def test_endless_times_are_refused() -> None:
    cursor = encode("submitted_at", Position(float("inf"), "j-1"))
    with pytest.raises(InvalidRequestError):
        decode("submitted_at", cursor, float, str)


@pytest.mark.parametrize("limit", [0, -1, 501])
def test_limits_have_bounds(limit: int) -> None:
    with pytest.raises(InvalidRequestError):
        checked_limit(limit)
    assert checked_limit(500) == 500
