"""Options of `up` and `serve` win over settings; an option that is not given does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from scheduler.errors import ConfigurationError
from scheduler.main import _settings
from scheduler.settings import Settings


def built(data: Path | None = None, database: str = "", port: int | None = None) -> Settings:
    return _settings(data=data, database=database, virtual="", host=None, port=port)


def test_settings_count_where_no_option_is_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HAVERSACK_STORE__DATA_DIR", str(tmp_path))
    monkeypatch.setenv("HAVERSACK_STORE__DATABASE_URL", "postgresql+psycopg://one")
    monkeypatch.setenv("HAVERSACK_API__PORT", "1234")
    monkeypatch.setenv("HAVERSACK_VIRTUAL", "1x2:H100")
    found = built()
    assert (found.store.data_dir, found.store.database_url) == (
        tmp_path,
        "postgresql+psycopg://one",
    )
    assert (found.api.port, found.virtual) == (1234, "1x2:H100")
    given = built(data=Path("/elsewhere"), database="postgresql+psycopg://two", port=0)
    assert (given.store.data_dir, given.api.port) == (Path("/elsewhere"), 0)
    assert given.store.database_url == "postgresql+psycopg://two"


def test_without_both_the_data_lies_in_this_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HAVERSACK_STORE__DATA_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    assert built().store.data_dir == tmp_path / ".haversack"


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("HAVERSACK_API__PORT", "99999", "less than or equal to 65535"),
        ("HAVERSACK_CYCLE__NOPE", "1", "not permitted"),
    ],
)
def test_a_refused_variable_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, told: str
) -> None:
    monkeypatch.setenv(name, text)
    with pytest.raises(ConfigurationError, match=f"{name}: .*{told}"):
        built()


def test_a_list_that_is_none_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAVERSACK_API__TRUSTED_PROXIES", "10.0.0.1")
    with pytest.raises(ConfigurationError, match="api") as caught:
        built()
    assert "as JSON" in caught.value.hint
    monkeypatch.setenv("HAVERSACK_API__TRUSTED_PROXIES", '["10.0.0.1"]')
    assert built().api.trusted_proxies == ("10.0.0.1",)
