from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.ids import SequentialIds

from scheduler import failpoints
from scheduler.clock import iso
from scheduler.ids import SystemIds
from scheduler.model.quantity import UtcSeconds


class _FixedClock:
    def __init__(self, instant: float) -> None:
        self._instant = UtcSeconds(instant)

    def now(self) -> UtcSeconds:
        return self._instant

    def monotonic_s(self) -> float:
        return self._instant


def test_ids_sort_by_time_and_hold_only_safe_characters() -> None:
    early = SystemIds(_FixedClock(1_700_000_000.000)).new("j")
    late = SystemIds(_FixedClock(1_700_000_000.001)).new("j")
    assert early < late
    assert re.fullmatch(r"j-[0-9a-hjkmnp-tv-z]{16}", early)


def test_sequential_ids_repeat() -> None:
    assert [SequentialIds().new("a") for _ in range(2)] == ["a-0000000000000001"] * 2


def test_instants_are_rfc3339_utc() -> None:
    assert iso(UtcSeconds(0.5)) == "1970-01-01T00:00:00.500Z"
    assert iso(None) is None


def _run(armed: str, code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HAVERSACK_FAILPOINTS": armed},
        capture_output=True,
        text=True,
        check=False,
    )


HIT = "from scheduler import failpoints\nfor _ in range(3): failpoints.hit('exit-seen'); print(1)"


def test_an_unarmed_failpoint_does_nothing() -> None:
    failpoints.hit("exit-seen")


@pytest.mark.parametrize(("kind", "passes"), [("kill", 0), ("kill@3", 2)])
def test_a_failpoint_kills_at_the_pass_it_names(kind: str, passes: int) -> None:
    done = _run(f"exit-seen={kind}", HIT)
    assert done.returncode == -9
    assert done.stdout.count("1") <= passes  # what was buffered died with the process


def test_a_failpoint_raises() -> None:
    done = _run("exit-seen=raise", HIT)
    assert "FailpointError: exit-seen" in done.stderr


def test_a_launchers_failpoint_is_handed_to_the_launcher_whose_turn_it_is() -> None:
    code = "from scheduler import failpoints as f\nfor _ in range(3): print(f.for_launcher())"
    done = _run("launcher-after-fork=hang@2,exit-seen=kill", code)
    assert done.stdout.splitlines() == [
        "{}",
        "{'HAVERSACK_FAILPOINTS': 'launcher-after-fork=hang'}",
        "{}",
    ]


def test_a_failpoint_that_fires_is_written_down(tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = f"import os\nos.environ['HAVERSACK_FAILPOINTS_LOG'] = {str(log)!r}\n{HIT}"
    assert _run("exit-seen=kill@2", code).returncode == -9
    assert re.fullmatch(r"exit-seen kill \d+\n", log.read_text())


def test_an_unknown_kind_is_named() -> None:
    done = _run("exit-seen=bang", "import scheduler.failpoints")
    assert "wants 'bang'; known: kill, raise, hang, freeze" in done.stderr


def test_an_unknown_failpoint_is_named() -> None:
    done = _run("no-such=kill", "import scheduler.failpoints")
    assert "names 'no-such'; known: submit-before-commit" in done.stderr
