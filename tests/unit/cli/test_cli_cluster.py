"""Cluster, administration and self-check commands."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import httpx
import pytest
from support.fake_daemon import FakeDaemon, items, ok, problem

from scheduler.cli.doctor import Grade, skew

NODE = {
    "id": "n-1",
    "name": "box",
    "pool": "default",
    "price_class": "reserved",
    "rack": "",
    "zone": "",
    "health": "healthy",
    "cordoned": True,
    "simulated": True,
    "gpus": 8,
    "gpus_used": 3,
    "gpu_models": ["H100"],
    "cpu_milli": 64000,
    "cpu_milli_used": 1500,
    "memory_mib": 2048,
    "memory_mib_used": 1024,
    "seen_at": "2027-01-15T07:59:50.000Z",
    "version": 1,
}
GPU = {
    "id": "GPU-a",
    "node_id": "n-1",
    "node_name": "box",
    "index": 0,
    "model": "H100",
    "memory_mib": 81920,
    "health": "unhealthy",
    "cordoned": False,
    "simulated": False,
    "in_use": True,
    "job_id": None,
    "job_name": None,
    "version": 1,
}
DECISION = {
    "id": "d-1",
    "at": "2027-01-15T07:59:50.000Z",
    "epoch": 1,
    "snapshot_revision": 9,
    "value": 99.5,
    "bound": 100.0,
    "gap": 0.005,
    "placed": 2,
    "refused": 0,
    "waiting_classes": 1,
    "policy": "priority-age",
    "duration_ms": 3.25,
}
TOKEN = {
    "id": "t-1",
    "tenant": "default",
    "principal": "p-1",
    "principal_name": "ann",
    "role": "user",
    "description": "",
    "created_at": "2027-01-15T07:00:00.000Z",
    "expires_at": None,
    "revoked_at": None,
}


def rows(text: str) -> list[str]:
    """Lines with their padding squeezed."""
    return [" ".join(line.split()) for line in text.splitlines()]


def test_nodes_show_use_and_whether_they_are_simulated() -> None:
    head, row = rows(FakeDaemon().on("GET", "nodes", items(NODE)).run("nodes").stdout)
    assert head.endswith("SEEN")
    assert row == "box healthy cordoned simulated default 3/8 H100 1.5/64 1/2 10s"


def test_gpus_in_use_are_told_apart_even_when_their_holder_is_not_ours() -> None:
    daemon = FakeDaemon().on("GET", "gpus", items(GPU))
    assert rows(daemon.run("gpus").stdout)[1] == "box 0 H100 unhealthy 80 GPU-a (another tenant's)"
    assert daemon.run("gpus", "-o", "name").stdout == "GPU-a\n"


def test_queues() -> None:
    record = {"name": "q", "tenant": "t", "weight": 1.0, "waiting": 3, "running": 2, "held": 1}
    daemon = FakeDaemon().on("GET", "queues", items(record))
    assert rows(daemon.run("queue").stdout)[1] == "q t 3 2 1"


@pytest.mark.parametrize(("verb", "cordoned"), [("cordon", True), ("uncordon", False)])
def test_cordon_takes_a_node_or_a_gpu(verb: str, *, cordoned: bool) -> None:
    daemon = (
        FakeDaemon()
        .on("POST", "nodes/box:cordon", ok(NODE))
        .on("POST", "gpus/GPU-a:cordon", ok(GPU))
    )
    assert daemon.run(verb, "box").stdout == f"box {verb}ed\n"
    assert daemon.run(verb, "--gpu", "GPU-a").stdout == f"GPU-a {verb}ed\n"
    assert daemon.bodies() == [{"cordoned": cordoned}] * 2
    assert daemon.run(verb).exit_code == 2
    assert daemon.run(verb, "box", "--gpu", "GPU-a").exit_code == 2


def test_decisions_tell_value_bound_and_gap() -> None:
    daemon = (
        FakeDaemon()
        .on("GET", "decisions", items(DECISION))
        .on(
            "GET",
            "decisions/d-1",
            ok({**DECISION, "document": {"solver": {"stage": "milp", "skipped": 7}}}),
        )
    )
    assert rows(daemon.run("decisions").stdout)[1] == "d-1 2 0 1 99.5 100 0.50% 3.2 10s"
    text = daemon.run("decisions", "d-1").stdout
    assert "0.500%" in text
    assert '"stage": "milp"' in text
    assert "7 jobs further back were not looked at" in text


EVENT = {
    "revision": 7,
    "tenant": "default",
    "at": "2027-01-15T07:59:50.000Z",
    "kind": "job.state",
    "object_id": "j-1",
    "payload": {"to": "RUNNING"},
}


def streaming(*then: httpx.Response | Exception) -> FakeDaemon:
    text = f"retry: 2000\n\nid: 7\ndata: {json.dumps(EVENT)}\n\n"
    return FakeDaemon().on("GET", "events", httpx.Response(200, text=text), *then)


def test_events_known_so_far_are_printed_and_the_command_ends() -> None:
    daemon = streaming(problem(500, "internal", "over"))
    result = daemon.run("events", "--since", "6", "--json")
    assert json.loads(result.stdout) == EVENT
    assert result.exit_code == 0
    assert daemon.requests[0].url.params["since"] == "6"


def test_following_events_ends_with_ctrl_c() -> None:
    def interrupted(_: httpx.Request) -> httpx.Response:
        raise KeyboardInterrupt

    daemon = FakeDaemon().on("GET", "events", interrupted)
    result = daemon.run("events", "-f")
    assert result.exit_code == 0
    assert "--since" in result.stderr
    assert daemon.run("events", "-o", "yaml").exit_code == 2


def test_a_token_is_alone_on_stdout() -> None:
    daemon = FakeDaemon().on("POST", "tokens", ok({**TOKEN, "token": "hvs_secret"}, 201))
    result = daemon.run(
        *[
            "token",
            "create",
            "ann",
            "--role",
            "operator",
            "--for-tenant",
            "t-2",
            "--expires-in",
            "30d",
            "--read-only",
        ]
    )
    assert result.stdout == "hvs_secret\n"
    assert "haversack token revoke t-1" in result.stderr
    assert daemon.bodies() == [
        {
            "name": "ann",
            "role": "operator",
            "tenant": "t-2",
            "description": "",
            "expires_in_s": 2_592_000.0,
            "read_only": True,
        }
    ]
    assert daemon.run("token", "create", "ann", "--expires-in", "soon").exit_code == 2


def test_tokens_are_listed_and_revoked() -> None:
    revoked = {**TOKEN, "revoked_at": "2027-01-15T07:59:50.000Z"}
    daemon = (
        FakeDaemon()
        .on("GET", "tokens", items(TOKEN, revoked))
        .on("POST", "tokens/t-1:revoke", ok(revoked))
    )
    assert [row.split()[4] for row in rows(daemon.run("token", "list").stdout)[1:]] == [
        "active",
        "revoked",
    ]
    assert daemon.run("token", "revoke", "t-1").stdout == "t-1 revoked\n"


def test_tenants_are_created_and_listed() -> None:
    tenant = {"id": "t-9", "name": "lab", "created_at": "2027-01-15T07:00:00.000Z"}
    daemon = FakeDaemon().on("POST", "tenants", ok(tenant, 201)).on("GET", "tenants", items(tenant))
    assert daemon.run("tenant", "create", "lab").stdout == "t-9\n"
    assert rows(daemon.run("tenant", "list").stdout)[1] == "t-9 lab 1h"


def test_audit_and_dashboard() -> None:
    entry = {
        "id": 1,
        "at": "2027-01-15T07:00:00.000Z",
        "tenant": "default",
        "principal": "ann",
        "action": "jobs:cancel",
        "object_id": "j-1",
        "outcome": "denied",
        "detail": {},
    }
    daemon = (
        FakeDaemon()
        .on("GET", "audit", items(entry))
        .on("POST", "sessions", ok({"login_url": "http://h/login?ticket=1", "expires_in_s": 300}))
    )
    assert "denied" in daemon.run("audit").stdout
    result = daemon.run("dashboard")
    assert result.stdout == "http://h/login?ticket=1\n"
    assert "300 s" in result.stderr


READY = {"ready": True, "role": "leader", "troubles": {}, "warnings": {}}


def healthy() -> FakeDaemon:
    health = httpx.Response(
        200,
        json={"status": "ok", "version": version("haversack")},
        headers={"date": "Fri, 15 Jan 2027 08:00:01 GMT"},
    )
    return (
        FakeDaemon()
        .on("GET", "/healthz", health)
        .on("GET", "/readyz", ok(READY))
        .on("GET", "queues", items())
    )


def graded(daemon: FakeDaemon, environ: dict[str, str] | None = None) -> dict[str, str]:
    result = daemon.run_with(
        {"HAVERSACK_TOKEN": "hvs_x"} if environ is None else environ, "doctor", "--json"
    )
    return {check["check"]: check["grade"] for check in json.loads(result.stdout)["items"]}


def test_doctor_finds_a_healthy_daemon_in_order() -> None:
    grades = graded(healthy())
    del grades["NVML"]  # depends on the box that runs this test
    assert grades == {
        "address": "ok",
        "token": "ok",
        "data directory": "ok",
        "server": "ok",
        "versions": "ok",
        "clocks": "ok",
        "readiness": "ok",
        "authorisation": "ok",
    }
    assert healthy().run("doctor").exit_code == 0


def test_doctor_names_what_is_wrong_and_ends_with_its_code(tmp_path: Path) -> None:
    down = FakeDaemon().on("GET", "/healthz", httpx.ConnectError("refused"))
    assert down.run("doctor").exit_code == 7
    locked_out = healthy().on("GET", "queues", problem(401, "unauthenticated", "unknown token"))
    assert graded(locked_out)["authorisation"] == "failed"
    assert locked_out.run("doctor").exit_code == 4
    unready = healthy().on(
        "GET", "/readyz", ok(READY | {"ready": False, "troubles": {"store": "full"}}, 503)
    )
    assert graded(unready)["readiness"] == "failed"
    for wanting in ({"warnings": {"fence": "no policy"}}, {"role": "standby"}):
        warned = healthy().on("GET", "/readyz", ok(READY | wanting))
        assert graded(warned)["readiness"] == "warning"
        assert warned.run("doctor").exit_code == 0
    assert graded(healthy(), {})["token"] == "failed"
    (tmp_path / "token").write_text("hvs_x")
    (tmp_path / "token").chmod(0o644)
    assert graded(healthy(), {"HAVERSACK_DATA": str(tmp_path)}) == {"settings": "failed"}


def test_doctor_sees_a_wrong_clock_and_an_open_data_directory(tmp_path: Path) -> None:
    late = healthy().on(
        "GET",
        "/healthz",
        httpx.Response(
            200,
            json={"status": "ok", "version": "0.1.0"},
            headers={"date": "Fri, 15 Jan 2027 09:00:00 GMT"},
        ),
    )
    tmp_path.chmod(0o755)
    grades = graded(late, {"HAVERSACK_TOKEN": "hvs_x", "HAVERSACK_DATA": str(tmp_path)})
    assert grades["clocks"] == "warning"
    assert grades["data directory"] == "failed"


@pytest.mark.parametrize(
    ("client", "server", "grade", "who"),
    [
        ("0.1.0", "0.3.9", Grade.OK, ""),
        ("0.1.0", "0.4.0", Grade.FAILED, "client"),
        ("0.4.0", "0.1.0", Grade.FAILED, "server"),
        ("1.0.0", "2.0.0", Grade.FAILED, "client"),
        ("dev", "0.1.0", Grade.WARNING, ""),
    ],
)
def test_version_skew_names_who_must_upgrade(
    client: str, server: str, grade: Grade, who: str
) -> None:
    found = skew(client, server)
    assert found.grade is grade
    assert who in found.hint


def test_version_needs_a_server_only_for_the_check() -> None:
    nobody = FakeDaemon()
    assert nobody.run("version").stdout == f"{version('haversack')}\n"
    assert nobody.requests == []
    old = FakeDaemon().on("GET", "/healthz", ok({"status": "ok", "version": "0.9.0"}))
    result = old.run("version", "--check")
    assert result.exit_code == 1
    assert "upgrade the client" in result.stderr
    assert healthy().run("version", "--check").exit_code == 0
