from __future__ import annotations

import httpx
import pytest
from support.clock import ManualClock
from support.edge import BASE, InProcess
from support.ids import SequentialIds

from api.problems import error_of
from api.standby import Standing, standby_app
from scheduler.errors import NotLeaderError
from scheduler.settings import ApiSettings


def answer(path: str, standing: Standing, method: str = "GET", host: str = "") -> httpx.Response:
    app = standby_app(ApiSettings(), ManualClock(), SequentialIds(), lambda: standing)
    headers = {"host": host} if host else {}
    with httpx.Client(transport=InProcess(app), base_url=BASE) as client:
        return client.request(method, path, headers=headers)


def test_it_lives_and_is_ready_while_another_leads() -> None:
    standing = Standing("haversack-0")
    assert answer("/healthz", standing).json()["status"] == "ok"
    ready = answer("/readyz", standing, host="10.1.2.3")
    assert ready.status_code == 200
    assert ready.json() == {"ready": True, "role": "standby", "troubles": {}, "warnings": {}}


def test_who_cannot_tell_who_leads_is_not_ready() -> None:
    ready = answer("/readyz", Standing("haversack-0", "no answer"))
    assert ready.status_code == 503
    assert ready.json()["troubles"] == {"store": "no answer"}


@pytest.mark.parametrize("path", ["/", "/api/v1/jobs", "/metrics", "/healthz/"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_everything_else_is_refused_with_the_leaders_name(path: str, method: str) -> None:
    refused = answer(path, Standing("haversack-0"), method)
    assert refused.status_code == 503
    assert refused.headers["content-type"] == "application/problem+json"
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["code"] == "not-leader"
    error = error_of(refused.status_code, refused.content, refused.headers)
    assert isinstance(error, NotLeaderError)
    assert str(error) == "this replica stands by: haversack-0 leads"


def test_while_it_takes_over_it_asks_for_a_moment() -> None:
    refused = answer("/api/v1/jobs", Standing())
    assert refused.json()["detail"] == "this replica is taking over"


def test_names_that_are_not_ours_are_refused_as_ever() -> None:
    assert answer("/api/v1/jobs", Standing("a"), host="evil.example").status_code == 421
