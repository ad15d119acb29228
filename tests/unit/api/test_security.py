from __future__ import annotations

import pytest
from support.builders import node
from support.edge import JOB, Edge

from api.security import SESSION_S, TICKET_S
from scheduler import service
from scheduler.model.access import Role
from scheduler.model.quantity import DEFAULT_TENANT, SYSTEM_TENANT
from scheduler.tokens import digest, new_token

JOBS = "/api/v1/jobs"


def test_a_revoked_token_is_dead_within_two_seconds(edge: Edge) -> None:
    root, user = edge.root, edge.token()
    assert edge.call("GET", JOBS, user).status_code == 200
    [held] = [
        token
        for token in edge.call("GET", "/api/v1/tokens", root).json()["items"]
        if token["principal_name"] == "user-of-default"
    ]
    assert edge.call("POST", f"/api/v1/tokens/{held['id']}:revoke", root).status_code == 200

    edge.office.clock.advance(2.1)
    assert edge.call("GET", JOBS, user).status_code == 401


def test_an_expired_token_is_refused(edge: Edge) -> None:
    user = edge.token(expires_in_s=60)
    assert edge.call("GET", JOBS, user).status_code == 200
    edge.office.clock.advance(61)
    assert edge.call("GET", JOBS, user).status_code == 401


def test_a_flood_of_wrong_tokens_is_slowed_and_known_tokens_still_pass(edge: Edge) -> None:
    user = edge.token()
    assert edge.call("GET", JOBS, user).status_code == 200
    edge.office.clock.advance(3)
    statuses = [edge.call("GET", JOBS, new_token()).status_code for _ in range(40)]

    assert statuses[:30] == [401] * 30
    assert set(statuses[30:]) == {429}
    blocked = edge.call("GET", JOBS, new_token())
    assert int(blocked.headers["retry-after"]) >= 1
    assert edge.call("GET", JOBS, user).status_code == 200
    assert edge.call("GET", JOBS, new_token(), address="10.0.0.9").status_code == 401
    edge.office.clock.advance(2)
    assert edge.call("GET", JOBS, new_token()).status_code == 401


def test_a_flood_of_denied_changes_cannot_fill_the_audit_log(edge: Edge) -> None:
    for _ in range(60):
        edge.call("POST", JOBS, body=JOB)

    assert len([row for row in edge.office.audited() if row.outcome == "denied"]) == 30


@pytest.mark.parametrize("header", ["Basic dXNlcjpwYXNz", "Bearer", "Bearer ", "bearer\thvs_x"])
def test_other_credentials_are_refused(edge: Edge, header: str) -> None:
    assert edge.call("GET", JOBS, headers={"Authorization": header}).status_code == 401


def test_a_login_link_opens_a_read_only_session_once(edge: Edge) -> None:
    user = edge.token()
    answer = edge.call("POST", "/api/v1/sessions", user)
    assert answer.status_code == 201
    url = answer.json()["login_url"]
    assert url.startswith("http://127.0.0.1:8470/login?ticket=")

    opened = edge.call("GET", url.removeprefix("http://127.0.0.1:8470"))
    assert (opened.status_code, opened.headers["location"]) == (303, "/")
    cookie = opened.headers["set-cookie"]
    for part in ("HttpOnly", "SameSite=strict", "Path=/", f"Max-Age={SESSION_S}"):
        assert part in cookie
    session = {"Cookie": cookie.partition(";")[0]}
    assert edge.call("GET", JOBS, headers=session).status_code == 200
    assert edge.call("POST", JOBS, body=JOB, headers=session).status_code == 403
    assert edge.call("GET", url.removeprefix("http://127.0.0.1:8470")).status_code == 401

    edge.office.clock.advance(SESSION_S + 1)
    assert edge.call("GET", JOBS, headers=session).status_code == 401


def test_a_login_link_grows_old(edge: Edge) -> None:
    url = edge.call("POST", "/api/v1/sessions", edge.token()).json()["login_url"]
    edge.office.clock.advance(TICKET_S + 1)

    assert edge.call("GET", url.removeprefix("http://127.0.0.1:8470")).status_code == 401


@pytest.mark.parametrize("role", [Role.VIEWER, Role.USER, Role.OPERATOR, Role.ADMIN])
@pytest.mark.parametrize("tenant", [DEFAULT_TENANT, SYSTEM_TENANT])
def test_a_session_has_the_rights_of_its_principal_and_no_more(
    edge: Edge, role: Role, tenant: str
) -> None:
    token = edge.token(role, tenant)  # type: ignore[arg-type]
    opened = edge.call("POST", "/api/v1/sessions?cookie=true", token)
    assert opened.status_code == 204
    session = opened.headers["set-cookie"].partition(";")[0].partition("=")[2]

    found = edge.office.read(
        lambda tx: service.authenticate(tx, digest(session), now=edge.office.now)
    )
    assert found is not None
    _, name, home, has, read_only = found
    assert (name, home, has, read_only) == (f"{role}-of-{tenant}", tenant, role, True)


def test_a_session_may_not_open_further_sessions(edge: Edge) -> None:
    read_only = edge.token(read_only=True)

    assert edge.call("POST", "/api/v1/sessions", read_only).status_code == 403


def test_no_token_is_in_the_database(edge: Edge) -> None:
    root = edge.root
    issued = edge.call("POST", "/api/v1/tokens", root, body={"name": "ci", "role": "user"}).json()[
        "token"
    ]
    edge.call("POST", "/api/v1/sessions?cookie=true", issued)

    dump = edge.office.read(
        lambda tx: "\n".join(
            tx.connection.connection.driver_connection.iterdump()  # type: ignore[union-attr]
        )
    )
    assert issued not in dump
    assert root not in dump
    assert "hvs_" not in dump


def test_the_dashboard_is_static_strict_and_needs_no_other_host(edge: Edge) -> None:
    edge.office.nodes(node("n0"))
    for path, kind in (("/", "html"), ("/app.js", "javascript"), ("/style.css", "css")):
        answer = edge.call("GET", path)
        assert answer.status_code == 200
        assert kind in answer.headers["content-type"]
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        text = answer.text.replace("http://www.w3.org", "")
        assert "http://" not in text
        assert "https://" not in text
    page, module = edge.call("GET", "/").text, edge.call("GET", "/app.js").text
    assert " style=" not in page
    assert "<script>" not in page
    for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert sink not in module
