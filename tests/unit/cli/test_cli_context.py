"""Finding the daemon and the token, and guarding the token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fake_daemon import NOW, FakeDaemon, items

from scheduler.cli.context import DEFAULT_SERVER, Session
from scheduler.cli.text import age, clean, clean_log, duration
from scheduler.errors import ConfigurationError, UnauthenticatedError

URL = "http://127.0.0.1:9999"


@pytest.fixture
def box(tmp_path: Path) -> Path:
    """A folder with a daemon's `.haversack` in it."""
    data = tmp_path / ".haversack"
    data.mkdir(mode=0o700)
    (data / "endpoint.json").write_text(json.dumps({"url": URL, "pid": 1}))
    (data / "token").write_text("hvs_local\n")
    (data / "token").chmod(0o600)
    return tmp_path


def session(directory: Path, server: str | None = None, **environ: str) -> Session:
    return Session(server=server, environ=environ, directory=directory)


def test_the_nearest_data_directory_upward_is_found(box: Path) -> None:
    deep = box / "a" / "b"
    deep.mkdir(parents=True)
    target = session(deep).target()
    assert (target.address, target.token) == (URL, "hvs_local")
    assert target.data_dir == box / ".haversack"


def test_haversack_data_wins_over_the_folder(box: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    target = session(box, HAVERSACK_DATA=str(other)).target()
    assert (target.address, target.token) == (DEFAULT_SERVER, "")
    assert session(other, HAVERSACK_DATA=str(box / ".haversack")).target().address == URL


def test_options_win_over_environment_over_folder(box: Path) -> None:
    env = {"HAVERSACK_SERVER": "https://env:1", "HAVERSACK_TOKEN": "hvs_env"}
    assert session(box, **env).target().address == "https://env:1"
    assert session(box, **env).target().token == "hvs_env"
    assert session(box, "https://flag:2/", **env).target().address == "https://flag:2"


def test_the_token_of_this_box_is_never_sent_elsewhere(box: Path) -> None:
    elsewhere = session(box, "https://elsewhere:8470")
    assert elsewhere.target().token == ""
    with pytest.raises(UnauthenticatedError, match="no token for https://elsewhere:8470"):
        elsewhere.connect()
    assert session(box, "http://localhost:8470").target().token == "hvs_local"


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602])
def test_a_token_file_open_to_others_is_refused_with_the_remedy(box: Path, mode: int) -> None:
    token = box / ".haversack" / "token"
    token.chmod(mode)
    result = FakeDaemon().on("GET", "jobs", items()).run_with({}, "jobs", cwd=box)
    assert result.exit_code == 4
    assert f"chmod 600 {token}" in result.stderr


def test_the_found_token_is_what_the_daemon_gets(box: Path) -> None:
    daemon = FakeDaemon().on("GET", "jobs", items())
    assert daemon.run_with({}, "--tenant", "lab", "jobs", cwd=box).exit_code == 0
    assert daemon.requests[0].headers["authorization"] == "Bearer hvs_local"
    assert daemon.requests[0].headers["x-haversack-tenant"] == "lab"
    assert str(daemon.requests[0].url).startswith(URL)


@pytest.mark.parametrize("text", ["", "{}", "[]", "nonsense"])
def test_a_broken_endpoint_file_is_told(box: Path, text: str) -> None:
    (box / ".haversack" / "endpoint.json").write_text(text)
    with pytest.raises(ConfigurationError, match="endpoint"):
        session(box).target()


@pytest.mark.parametrize(
    "address",
    [
        "localhost:8470",
        "ftp://x",
        "http://",
        "http://[::1",
        "http://host:99999",
        "http://host:0",
        "http://ho st",
        "http://host\n",
    ],
)
def test_an_address_that_is_none_is_told(box: Path, address: str) -> None:
    with pytest.raises(ConfigurationError, match="not the address"):
        session(box, address).target()


@pytest.mark.parametrize("token", ["hvs_\u00e9", "hvs_a b", "hvs_a\x00"])
def test_a_token_that_cannot_be_one_is_told_without_showing_it(box: Path, token: str) -> None:
    result = FakeDaemon().run_with({"HAVERSACK_TOKEN": token}, "jobs", cwd=box)
    assert result.exit_code == 2
    assert "HAVERSACK_TOKEN" in result.stderr
    assert "hvs_" not in result.stderr


def test_a_ca_file_that_is_none_is_told(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    for content in (None, "no certificate"):
        if content is not None:
            path.write_text(content)
        result = FakeDaemon().run("--ca-file", str(path), "jobs")
        assert result.exit_code == 2
        assert f"the CA file {path} cannot be used" in result.stderr


def test_token_files_that_cannot_be_used(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch(mode=0o600)
    for path in (tmp_path / "absent", empty):
        with pytest.raises(ConfigurationError, match="token file"):
            Session(token_file=path, environ={}, directory=tmp_path).target()


@given(st.text())
def test_clean_text_is_printable_and_clean_stays_clean(text: str) -> None:
    assert clean(text).isprintable()
    assert clean(clean(text)) == clean(text)


@given(st.text(alphabet="\x1b[]()0;1mHJ?\x07\\ab\n\t\r"))
def test_clean_log_keeps_only_colours_of_all_escapes(text: str) -> None:
    for part in clean_log(text).split("\x1b")[1:]:
        assert part.startswith("[")
        assert part[1:].lstrip("0123456789;:").startswith("m")


def test_logs_keep_their_colours_and_lines() -> None:
    assert clean_log("\x1b[31mred\x1b[0m\n\ttab\x1b[2J\x1b]0;t\x07") == "\x1b[31mred\x1b[0m\n\ttab"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0s"), (0, "0s"), (59.9, "59s"), (60, "1m"), (310, "5m10s"), (3600, "1h"),
        (11_130, "3h5m"), (86_400, "1d"), (187_200, "2d4h"), (86_400 * 900, "900d"),
    ],
)  # fmt: skip
def test_durations_have_at_most_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_an_age_without_an_instant_is_a_dash() -> None:
    assert age(None, NOW) == "-"
