from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from scheduler.observability import Metrics, configure_logging, redact

TOKEN = "hvs_" + "A" * 43 + "0a1b2c"


@pytest.fixture
def told() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """What was logged since the test began; logging is as before afterwards."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    stream = io.StringIO()
    configure_logging(stream=stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers[:] = before
    root.setLevel(level)
    structlog.reset_defaults()


def test_one_event_is_one_line_of_json_whatever_it_holds(
    told: Callable[[], list[dict[str, Any]]],
) -> None:
    structlog.get_logger("x").warning("job\nname", name="a\x1b[31m\u202e\u2028\x85b", number=3)
    [event] = told()
    assert event["event"] == "job\nname"
    assert event["name"] == "a\x1b[31m\\u202e\\u2028\\u0085b"
    assert (event["level"], event["logger"], event["number"]) == ("warning", "x", 3)


def test_secrets_are_taken_out_of_keys_texts_and_tracebacks(
    told: Callable[[], list[dict[str, Any]]],
) -> None:
    log = structlog.get_logger("x")
    log.info("sent", token=TOKEN, headers={"Authorization": f"Bearer {TOKEN}"})
    log.info("got hvs_%sx", "A" * 50, url="postgresql://user:hunter2@host/db", deep=[{"a": TOKEN}])
    log.error("failed", exc_info=ValueError(TOKEN))
    logging.getLogger("uvicorn.error").error("bad %s", f"Bearer {TOKEN}")

    events = told()
    assert len(events) == 4
    assert "hvs_A" not in json.dumps(events)
    assert "hunter2" not in json.dumps(events)
    assert events[0]["token"] == "[redacted]"
    assert "ValueError" in events[2]["exception"]


def test_quiet_shows_warnings_only(told: Callable[[], list[dict[str, Any]]]) -> None:
    stream = io.StringIO()
    configure_logging(quiet=True, stream=stream)
    structlog.get_logger("x").info("nothing")
    structlog.get_logger("x").warning("something")

    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["something"]


@given(st.text(), st.text(max_size=10))
def test_no_text_lets_a_token_or_a_control_character_through(before: str, after: str) -> None:
    event = redact(None, "info", {"event": before + TOKEN + after, before: after})
    shown = json.dumps(event, ensure_ascii=False)
    assert TOKEN not in shown
    assert not set(shown) & set("\x7f\x85\u2028\u2029\u202e\u2066")


def test_metrics_have_a_registry_of_their_own() -> None:
    one, two = Metrics(), Metrics()
    one.cycle_finished(
        duration_s=0.1, value=3.0, bound=4.0, gap=0.25, placed=2, refused=1, killed=True
    )
    one.watch_jobs(lambda: {"PENDING": 7})
    one.watch_intents(lambda: {"claimed": 1})
    text = one.render().decode()

    for line in (
        "haversack_decision_value 3.0",
        "haversack_decision_gap_ratio 0.25",
        "haversack_jobs_placed_total 2.0",
        "haversack_solver_kills_total 1.0",
        'haversack_jobs{state="PENDING"} 7.0',
        'haversack_intents_open{state="claimed"} 1.0',
    ):
        assert line in text
    assert "haversack_decision_value 0.0" in two.render().decode()


def test_counts_are_read_when_a_scrape_asks() -> None:
    metrics, asked = Metrics(), []

    def read() -> dict[str, int]:
        asked.append(1)
        return {"RUNNING": len(asked)}

    metrics.watch_jobs(read)
    assert asked == []
    assert 'haversack_jobs{state="RUNNING"} 1.0' in metrics.render().decode()
    assert 'haversack_jobs{state="RUNNING"} 2.0' in metrics.render().decode()
