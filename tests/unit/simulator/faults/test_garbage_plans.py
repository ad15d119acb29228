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
JOBS = [
    make_job("gang", shape(2, tasks=3)),
    make_job("one", shape(1)),
    make_job("plain", shape(0)),
    make_job("huge", shape(8, tasks=9)),
]
IDLE = snapshot_of([A, B], JOBS)
BUSY = snapshot_of([A, B], JOBS, [occupy(A, [0], 1_000, 1_000)])


def placed(plan: Plan) -> set[JobId]:
    return {placement.job_id for placement in plan.placements}


@pytest.mark.parametrize("snapshot", [IDLE, BUSY], ids=["idle", "busy"])
def test_no_job_gets_lost_in_garbage_that_passes_for_sound(snapshot: Snapshot) -> None:
    """A job that is neither placed nor missed would never settle, through no fault of the daemon."""
    *_, plan = decide(snapshot, profile_named("priority-age"), Effort(), NOW, 0)
    assert placed(plan) == {"j-gang", "j-one", "j-plain"}
    found = set()
    for seed in range(60):
        spoilt = garbage(plan, snapshot, Chance(seed, lambda _fault, _where: None))
        violations = check_safety(spoilt, snapshot, NOW)
        assert violations or placed(spoilt) == placed(plan)
        found |= {violation.kind for violation in violations}
    assert found >= {Kind.REASON, Kind.GANG, Kind.RESOURCES, Kind.GPU, Kind.JOB}
