"""Two replicas on one PostgreSQL: one leads, the other stands by and takes over."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.kubernetes import objects
from support.kubernetes.deployment import PATIENCE_S, Deployment, daemon_on, deployed
from support.kubernetes.fake_server import ADMIN, RunningFake, running_fake
from support.kubernetes.ground import Ground
from support.kubernetes.replicas import LEASE_TTL_S, frozen, ready, replicas
from support.kubernetes.resources import LEASES, POLICIES

from scheduler.settings import StoreSettings
from scheduler.store.onlooker import Onlooker

pytestmark = pytest.mark.postgres


@pytest.fixture
def fake_ground() -> Iterator[Ground]:
    with running_fake() as running:
        yield _fake(running)


def test_a_standby_says_so_and_leads_once_the_leader_stops(
    ground: Ground, tmp_path: Path, postgres_url: str
) -> None:
    with replicas(ground, tmp_path, postgres_url) as pair:
        first, second = pair.leads, pair.waits
        second.until(lambda: "stands by" in _refused(second)["detail"], "it has not looked yet")
        assert ready(second.daemon) == {
            "ready": True,
            "role": "standby",
            "troubles": {},
            "warnings": {},
        }
        refused = _refused(second)
        assert refused["code"] == "not-leader"
        assert refused["detail"] == f"this replica stands by: {socket.gethostname()} leads"
        first.node("a", gpus=2)
        first.create([objects.pod("before", gpus=1)])
        first.until(lambda: first.all_bound("before", 1), "the leader does not bind")

        assert first.daemon.stop() == 0
        pair.turn()
        assert ready(second.daemon)["warnings"] == {}
        second.create([objects.pod("after", gpus=1)])
        second.until(lambda: second.all_bound("after", 1), "the successor does not bind")
        assert {job["name"] for job in second.jobs()} == {"before", "after"}
        assert _epoch(second, "after") > _epoch(second, "before")
        assert second.daemon.stop() == 0
        for daemon in (first.daemon, second.daemon):
            log = daemon.log_file.read_text()
            assert "Traceback" not in log
            assert "Unclosed" not in log


def test_a_standby_that_is_told_to_stop_stops(
    fake_ground: Ground, tmp_path: Path, postgres_url: str
) -> None:
    with replicas(fake_ground, tmp_path, postgres_url) as pair:
        second = pair.waits.daemon
        assert second.stop() == 0
        log = second.log_file.read_text()
        assert "standing by" in log
        assert "Traceback" not in log
        assert not (second.data_dir / "endpoint.json").exists()
        assert ready(pair.leads.daemon)["role"] == "leader"


@pytest.mark.parametrize("point", ["bind-before-send=freeze", "bind-before-send=freeze@2"])
def test_a_leader_that_was_paused_before_it_binds_has_no_effect(
    ground: Ground, tmp_path: Path, postgres_url: str, point: str
) -> None:
    log = tmp_path / "fired"
    with replicas(
        ground, tmp_path, postgres_url, failpoints=point, FAILPOINTS_LOG=str(log)
    ) as pair:
        first, second = pair.leads, pair.waits
        first.node("a", gpus=2)
        first.node("b", gpus=2)
        first.create(objects.gang("gang", 3, gpus=1))
        frozen(first.daemon, log)
        pair.turn()
        second.until(lambda: second.all_bound("gang", 3), "the successor does not bind")
        second.create([objects.pod("late", gpus=1)])
        second.until(lambda: second.all_bound("late", 1), "the successor does not go on")
        nodes = list(second.nodes_of("").values())
        assert max(nodes.count(node) for node in nodes) == 2
        before, denials = second.pods(), ground.denials()

        old = first.daemon.process
        assert old is not None
        old.send_signal(signal.SIGCONT)
        assert first.daemon.wait_dead()
        assert ground.denials() > denials, "no server has refused anything"
        assert second.pods() == before
        assert old.returncode == 1
        told = first.daemon.log_tail()
        assert "error: epoch " in told or "error: another leader has taken over" in told
        assert "Traceback" not in told
        assert [job["state"] for job in second.jobs()] == ["LAUNCHING"] * 2
        assert second.daemon.stop() == 0


def test_the_lease_is_kept_for_as_long_as_the_cluster_is_read(
    tmp_path: Path, postgres_url: str
) -> None:
    store = StoreSettings(data_dir=tmp_path, database_url=postgres_url)
    with running_fake() as running, Onlooker(store) as onlooker:
        for verb in ("list", "watch"):
            running.do(lambda fake, verb=verb: fake.deny(ADMIN, verb, "pods"))  # type: ignore[misc]
        daemon = daemon_on(_fake(running), tmp_path, STORE__LEASE_TTL_S=str(LEASE_TTL_S))
        daemon.database = postgres_url
        daemon.start()
        first = None
        try:
            deadline = time.monotonic() + PATIENCE_S
            while first is None or time.monotonic() < first + 2 * LEASE_TTL_S:
                lead = onlooker.look()
                assert lead is not None or first is None, "the lease has ended"
                assert time.monotonic() < deadline, daemon.log_tail()
                if lead is not None and first is None:
                    first = time.monotonic()
                time.sleep(0.05)
            assert ready(daemon)["role"] == "standby"
            assert daemon.stop() == 0
            assert onlooker.look() is None
        finally:
            daemon.kill()


def test_a_database_that_is_behind_leads_above_what_the_cluster_knows(
    fake_ground: Ground, tmp_path: Path
) -> None:
    daemon = daemon_on(fake_ground, tmp_path)
    on_cluster = deployed(fake_ground, daemon)
    epochs = []
    for data_dir in (daemon.data_dir, tmp_path / "from-before"):
        daemon.data_dir = data_dir
        daemon.start()
        lease = on_cluster.ask("GET", LEASES.path("haversack-system", "haversack-epoch")).ok()
        epochs.append(lease["spec"]["leaseTransitions"])
        assert daemon.stop() == 0
    assert epochs == [1, 2]


def test_replicas_do_not_lead_where_the_cluster_would_not_refuse_a_stale_one(
    tmp_path: Path, postgres_url: str
) -> None:
    with running_fake() as running:
        running.do(lambda fake: fake.deny(ADMIN, "*", POLICIES.plural))
        daemon = daemon_on(_fake(running), tmp_path)
        daemon.database = postgres_url
        daemon.start(wait=False)
        assert daemon.wait_dead()
    assert daemon.process is not None
    assert daemon.process.returncode == 2
    assert "the cluster would not turn a stale leader away" in daemon.log_tail()
    assert POLICIES.plural in daemon.log_tail()


def test_one_that_is_alone_leads_unfenced_with_a_warning(tmp_path: Path) -> None:
    with running_fake() as running:
        running.do(lambda fake: fake.deny(ADMIN, "*", POLICIES.plural))
        alone = deployed(_fake(running), daemon_on(_fake(running), tmp_path))
        alone.daemon.start()
        alone.until(lambda: ready(alone.daemon)["ready"], "not ready")
        missing = ready(alone.daemon)["warnings"]["fence"]
        assert "nothing refuses other epochs" in missing
        assert POLICIES.plural in missing
        alone.node("a", gpus=1)
        alone.create([objects.pod("p", gpus=1)])
        alone.until(lambda: alone.all_bound("p", 1), "not bound")
        assert alone.daemon.stop() == 0


def _fake(running: RunningFake) -> Ground:
    return Ground(running.access, lambda _: running.access, lambda: None, real=False)


def _refused(deployment: Deployment) -> dict[str, Any]:
    answer = httpx.get(f"{deployment.daemon.url}/api/v1/jobs", trust_env=False)
    assert answer.status_code == 503
    told = answer.json()
    assert isinstance(told, dict)
    return told


def _epoch(deployment: Deployment, name: str) -> int:
    return int(deployment.pods()[name]["metadata"]["annotations"]["haversack.dev/epoch"])
