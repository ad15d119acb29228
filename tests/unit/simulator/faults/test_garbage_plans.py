"""What the simulated solver answers when it talks nonsense."""

import pytest
from support.clusters import NOW, make_job, make_node, occupy, shape, snapshot_of, two_domains

from policies.registry import profile_named
from scheduler.allocation.verify import Kind, check_safety
from scheduler.decide import decide
from scheduler.model.plan import Plan
from scheduler.model.ports import Effort
from scheduler.model.quantity import JobId
from scheduler.model.snapshot import Snapshot
from scheduler.simulator.faults.chance import Chance
from scheduler.simulator.faults.solver import garbage

A, B = make_node("a", board=two_domains()), make_node("b")
TWINS = [make_job("twin-1", shape(5)), make_job("twin-2", shape(5))]
JOBS = [
    make_job("gang", shape(2, tasks=3)),
    make_job("one", shape(1)),
    make_job("plain", shape(0)),
    *TWINS,
]
HELD = occupy(A, [0], 1_000, 1_000)
SPOILT = {Kind.REASON, Kind.GANG, Kind.RESOURCES, Kind.GPU, Kind.JOB}


def placed(plan: Plan) -> set[JobId]:
    return {placement.job_id for placement in plan.placements}


@pytest.mark.parametrize(
    ("snapshot", "harms"),
    [
        (snapshot_of([A, B], JOBS), SPOILT),
        (snapshot_of([A, B], JOBS, [HELD]), SPOILT),
        (snapshot_of([A], TWINS), SPOILT - {Kind.REASON}),
    ],
    ids=["idle", "busy", "twins"],
)
def test_no_job_gets_lost_in_garbage_that_passes_for_sound(
    snapshot: Snapshot, harms: set[Kind]
) -> None:
    """A job that is neither placed nor missed would never settle, and no daemon could help it.

    Of the twins one is placed, and the record of their class speaks for the other.
    """
    *_, plan = decide(snapshot, profile_named("priority-age"), Effort(), NOW, 0)
    assert len(plan.placements) == len(snapshot.waiting) - 1
    found = set()
    for seed in range(60):
        spoilt = garbage(plan, snapshot, Chance(seed, lambda _fault, _where: None))
        violations = check_safety(spoilt, snapshot, NOW)
        assert violations or placed(spoilt) == placed(plan)
        found |= {violation.kind for violation in violations}
    assert found >= harms
