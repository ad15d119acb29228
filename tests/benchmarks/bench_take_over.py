"""How long nobody leads when the leader of two replicas stops, or dies, on a real API server.

Counted from the signal until the other replica answers as the leader, with the default lease.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.kubernetes.ground import Ground
from support.kubernetes.real_server import control_plane
from support.kubernetes.replicas import Replicas, ready, replicas
from support.postgres import postgres_server

from scheduler.settings import StoreSettings

RUNS = 3
LEASE_TTL_S = StoreSettings().lease_ttl_s
HANDED_OVER_MAX_S = 3.0
DIED_MAX_S = LEASE_TTL_S + 3.0
_LOOK_EVERY_S = 0.02


def _stopped(pair: Replicas) -> None:
    assert pair.leads.daemon.process is not None
    pair.leads.daemon.process.terminate()


def _killed(pair: Replicas) -> None:
    pair.leads.daemon.kill()


def _measure(ground: Ground, database: str, end: Callable[[Replicas], None]) -> float:
    """Seconds from the end of the leader until the other one leads."""
    folder = Path(mkdtemp(prefix="take-over-"))
    try:
        with replicas(ground, folder, database, STORE__LEASE_TTL_S=str(LEASE_TTL_S)) as pair:
            pair.waits.until(lambda: ready(pair.waits.daemon) != {}, "no standby")
            began = time.monotonic()
            end(pair)
            while ready(pair.waits.daemon).get("role") != "leader":
                time.sleep(_LOOK_EVERY_S)
            return time.monotonic() - began
    finally:
        shutil.rmtree(folder)


def main() -> int:
    """Print the table; 1 if a threshold is missed."""
    missed = False
    sys.stdout.write(f"lease of {LEASE_TTL_S:g} s; seconds without a leader\n")
    with control_plane() as plane, postgres_server() as postgres:
        ground = Ground(
            plane.access, plane.access_as, plane.compact, real=True, authority=plane.authority
        )
        for what, end, limit_s in (
            ("stopped (SIGTERM)", _stopped, HANDED_OVER_MAX_S),
            ("died (SIGKILL)", _killed, DIED_MAX_S),
        ):
            taken = []
            for _ in range(RUNS):
                database = postgres.create_database()
                taken.append(_measure(ground, database, end))
                postgres.drop_database(database)
            median_s = statistics.median(taken)
            shown = " ".join(f"{each:6.2f}" for each in taken)
            sys.stdout.write(f"{what:18}{shown}  median {median_s:.2f}, limit {limit_s:g}\n")
            missed = missed or median_s > limit_s
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
