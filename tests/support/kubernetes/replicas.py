"""Two daemons on one PostgreSQL database that schedule one cluster."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from support.daemon import DaemonProcess
from support.kubernetes.deployment import PATIENCE_S, Deployment, daemon_on, deployed
from support.kubernetes.ground import Ground

LEASE_TTL_S = 3.0


@dataclass(frozen=True, slots=True)
class Replicas:
    """A leader, and who stands by; both run.

    Attributes:
        leads: the cluster as users of the first daemon see it.
        waits: as those of the second do, in the same namespace.
    """

    leads: Deployment
    waits: Deployment

    def turn(self) -> None:
        """Wait until the second leads.

        Raises:
            AssertionError: it did not in time; with its log.
        """
        self.waits.until(lambda: _leads(self.waits.daemon), "nobody took over")


def ready(daemon: DaemonProcess) -> dict[str, Any]:
    """What `/readyz` says; empty while nobody answers."""
    try:
        told = httpx.get(f"{daemon.url}/readyz", trust_env=False, timeout=5).json()
    except (httpx.TransportError, FileNotFoundError):
        return {}
    assert isinstance(told, dict)
    return told


def _leads(daemon: DaemonProcess) -> bool:
    assert daemon.alive, daemon.log_tail()
    return ready(daemon).get("role") == "leader"


def frozen(daemon: DaemonProcess, log: Path) -> None:
    """Wait until the daemon has stopped itself at a failpoint.

    Args:
        daemon: which one.
        log: its HAVERSACK_FAILPOINTS_LOG.
    """
    assert daemon.process is not None
    stat = Path(f"/proc/{daemon.process.pid}/stat")
    deadline = time.monotonic() + PATIENCE_S
    while not (log.exists() and stat.read_text().rpartition(")")[2].split()[0] == "T"):
        assert time.monotonic() < deadline, daemon.log_tail()
        time.sleep(0.02)


@contextmanager
def replicas(
    ground: Ground,
    folder: Path,
    database: str,
    *,
    account: Ground | None = None,
    failpoints: str = "",
    **settings: str,
) -> Iterator[Replicas]:
    """Both started, the first leads. Killed at the end; the namespace's objects are removed.

    Args:
        ground: their cluster.
        folder: gets their data directories.
        database: URL.
        account: the cluster under the daemons' own account, if that is not an administrator's.
        failpoints: of the first.
        settings: of both; `{}` stands for 0 or 1.
    """
    more = {"STORE__LEASE_TTL_S": str(LEASE_TTL_S), **settings}
    made = []
    for place, name in enumerate(("first", "second")):
        (folder / name).mkdir()
        own = {setting: value.replace("{}", str(place)) for setting, value in more.items()}
        daemon = daemon_on(account or ground, folder / name, **own)
        daemon.database = database
        made.append(daemon)
    first, second = made
    leads = deployed(ground, first)
    waits = Deployment(ground, second, leads.namespace)
    try:
        first.start(failpoints=failpoints)
        leads.until(lambda: _leads(first), "the first does not lead")
        second.start()
        yield Replicas(leads, waits)
    finally:
        first.kill()
        second.kill()
        leads.clear()
