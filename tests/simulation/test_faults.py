"""Two thousand schedules of faults against the real daemon's parts, and proof that they bite."""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import pytest

from scheduler.simulator.faults.__main__ import main, told
from scheduler.simulator.faults.bugs import BUGS, planted
from scheduler.simulator.faults.chance import Fault
from scheduler.simulator.faults.schedule import FAULTS_MIN, Rig

SCHEDULES, PARTS, STEPS = 2_000, 8, 200
EACH = SCHEDULES // PARTS
FIRED_MIN = -(-50 // PARTS)
"""Each kind this often in each part is each kind at least 50 times in all."""


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with Rig() as made:
        yield made


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("part", range(PARTS))
def test_every_invariant_holds_at_every_step(rig: Rig, part: int) -> None:
    fired: Counter[Fault] = Counter()
    for seed in range(part * EACH, (part + 1) * EACH):
        result = rig.play(seed, STEPS)
        assert not result.invariant, told(result)
        assert result.steps >= STEPS, told(result)
        assert result.fired.total() >= FAULTS_MIN, told(result)
        fired.update(result.fired)
    rare = {str(fault): fired[fault] for fault in Fault if fired[fault] < FIRED_MIN}
    assert not rare


QUICKLY_FOUND = {
    "no-epoch-check": {"I8"},
    "effect-before-commit": {"I5"},
    "freed-on-not-ready": {"I6", "I3"},
    "freed-when-stop-is-sent": {"I6", "I3", "I4"},
    "cache-over-store": {"I4", "I14"},
    "retry-unbounded": {"I11"},
    "key-ignored": {"I15"},
    "audit-missing": {"I16"},
    "sums-not-returned": {"I4"},
    "tenant-leak": {"I12"},
}


@pytest.mark.parametrize("name", sorted(QUICKLY_FOUND))
def test_a_planted_bug_is_found(rig: Rig, name: str) -> None:
    with planted(name, rig.disk):
        results = (rig.play(seed, STEPS) for seed in range(1, 41))
        found = next(result for result in results if result.invariant)
        again = rig.play(found.seed, STEPS)
    assert found.invariant in QUICKLY_FOUND[name], found.message
    assert again == found
    assert not rig.play(found.seed, STEPS).invariant, "the bug was not taken out again"


def test_half_of_the_bugs_come_from_the_failure_catalogue() -> None:
    from_catalogue = [name for name, bug in BUGS.items() if bug.row]
    assert len(BUGS) >= 20
    assert len(from_catalogue) >= 10
    assert 2 * len(from_catalogue) >= len(BUGS)


def test_a_seed_replays_to_the_last_bit_in_another_process(rig: Rig) -> None:
    here = rig.play(12, STEPS)
    command = [sys.executable, "-m", "scheduler.simulator.faults", "--seed", "12"]
    for hash_seed in ("1", "2"):
        replay = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
        )
        *trace, last = replay.stdout.splitlines()
        assert trace == list(here.trace)
        assert here.digest[:16] in last


def test_a_broken_invariant_names_the_command_that_replays_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--bug", "audit-missing", "--seed", "1", "--count", "3", "--steps", "210"]
    assert main(arguments) == 1
    told_here = capsys.readouterr().out
    assert "I16: " in told_here
    wanted = "python -m scheduler.simulator.faults --seed 1 --steps 210 --bug audit-missing"
    assert wanted in told_here
    assert main(["--seed", "1"]) == 0
