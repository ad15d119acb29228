from __future__ import annotations

import hashlib
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.tokens import digest, looks_valid, new_token


def test_a_new_token_has_the_published_shape() -> None:
    token = new_token()
    assert token.startswith("hvs_")
    assert len(token) == 4 + 43 + 6
    assert looks_valid(token)
    assert token != new_token()


def test_only_the_digest_of_the_whole_token_is_kept() -> None:
    token = new_token()
    assert digest(token) == hashlib.sha256(token.encode()).hexdigest()
    assert token not in digest(token)


@given(st.integers(0, 52), st.sampled_from(string.ascii_letters + string.digits))
def test_any_one_wrong_character_is_noticed(position: int, character: str) -> None:
    token = new_token()
    damaged = token[:position] + character + token[position + 1 :]
    assert looks_valid(damaged) == (damaged == token)


@given(st.text())
def test_anything_may_be_asked_about(text: str) -> None:
    assert not looks_valid(text)


@pytest.mark.parametrize(
    "change", [str.upper, lambda t: t + "\n", lambda t: " " + t, lambda t: t[:-1]]
)
def test_near_misses_are_refused(change: object) -> None:
    assert callable(change)
    assert not looks_valid(change(new_token()))
