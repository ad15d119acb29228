from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.usecases import RED, ROOT, actor

from scheduler.store.scoping import storable, visible
from scheduler.store.tables import jobs


def test_a_tenant_is_bound_to_its_rows_and_the_system_is_not() -> None:
    clause = visible(actor(RED), jobs.c.tenant_id)
    assert clause.compare(jobs.c.tenant_id == RED)
    assert "tenant_id" not in str(visible(ROOT, jobs.c.tenant_id))


@pytest.mark.parametrize("text", ["", "a\x00", "\ud800", "tab\t", "x" * 256, "\x85"])
def test_what_no_database_holds_as_a_key(text: str) -> None:
    assert not storable(text)


@given(st.text())
def test_whatever_is_storable_survives_encoding(text: str) -> None:
    if storable(text):
        assert text.encode().decode() == text
        assert "\x00" not in text
