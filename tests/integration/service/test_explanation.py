from __future__ import annotations

import pytest
from support.builders import job_spec, node
from support.usecases import RED, USER, Office, actor

from scheduler import service
from scheduler.errors import NotFoundError
from scheduler.model.lifecycle import JobEvent, JobState
from scheduler.model.plan import FunnelStep, Plan, Reason, ReasonCode, Waiting
from scheduler.model.quantity import JobId
from scheduler.model.view import Explanation
from scheduler.store.transitions import apply_event

NODE = node("a")


def _explain(office: Office, job_id: JobId) -> Explanation:
    return office.ask(service.explain, USER, job_id, now=office.now)


def _waits(class_key: str) -> Plan:
    reason = Reason(ReasonCode.WAITING_CAPACITY, "8 GPUs are asked, 3 are free", "gpus", 8, 3, 3)
    return Plan(
        snapshot_revision=1,
        waiting=(Waiting(class_key, (reason,), (FunnelStep("schedulable", 1),)),),
        value=1.0,
        bound=2.0,
    )


def test_a_fresh_job_waits_for_its_first_evaluation(office: Office) -> None:
    job = office.submit()
    found = _explain(office, job.id)
    assert [reason.code for reason in found.reasons] == [ReasonCode.PENDING_EVALUATION]
    assert (found.decision_id, found.evaluated_at, found.gap) == (None, None, None)


def test_a_waiting_job_gets_the_reasons_of_its_class(office: Office) -> None:
    job = office.submit(spec=job_spec(gpus=8))
    report = office.commit(_waits(job.class_key))
    found = _explain(office, job.id)
    assert found.reasons[0].message == "8 GPUs are asked, 3 are free"
    assert found.funnel == (FunnelStep("schedulable", 1),)
    assert (found.decision_id, found.gap, found.evaluated_at) == (
        report.decision_id,
        0.5,
        office.now,
    )
    assert found.summary == "It waits: 8 GPUs are asked, 3 are free; no job is ahead of it."


def test_reasons_go_when_the_class_no_longer_waits(office: Office) -> None:
    job = office.submit(spec=job_spec(gpus=8))
    office.commit(_waits(job.class_key))
    office.commit(Plan(snapshot_revision=2))
    assert _explain(office, job.id).reasons[0].code is ReasonCode.PENDING_EVALUATION


def test_ahead_counts_higher_priority_and_age_over_all_tenants(office: Office) -> None:
    office.tenant(RED)
    office.submit(spec=job_spec(priority=50))
    office.submit(actor(RED), spec=job_spec(priority=90))
    job = office.submit(spec=job_spec(priority=50))
    office.submit(spec=job_spec(priority=50))
    office.submit(spec=job_spec(priority=10))
    held = office.submit(spec=job_spec(priority=99))
    office.bring_to(held.id, JobState.HELD, NODE)
    found = _explain(office, job.id)
    assert found.ahead == 2
    assert "2 jobs are ahead of it" in found.summary


def test_a_job_in_backoff_says_until_when(office: Office) -> None:
    office.nodes(NODE)
    job = office.submit()
    office.bring_to(job.id, JobState.ASSIGNED, NODE)
    office.do(service.requeue, USER, job.id, now=office.now, ids=office.ids)
    office.write(
        lambda tx: apply_event(
            tx, job.id, JobEvent.HOLD, now=office.now, changes={"eligible_at": office.now + 40}
        )
    )
    office.events(job.id, JobEvent.RELEASE)
    found = _explain(office, job.id)
    assert [reason.code for reason in found.reasons] == [ReasonCode.BACKOFF]
    assert "in 40 s, after attempt 1" in found.summary
    office.clock.advance(40)
    assert _explain(office, job.id).reasons[0].code is ReasonCode.PENDING_EVALUATION


SENTENCES = {
    JobState.HELD: "It is held until somebody releases it.",
    JobState.QUARANTINED: "It was set aside; release it to try again.",
    JobState.ASSIGNED: "about to start: attempt 1, 1 task with 1 GPU on a.",
    JobState.LAUNCHING: "It is starting: attempt 1, 1 task with 1 GPU on a.",
    JobState.RUNNING: "It has been running for 0 s: attempt 1, 1 task with 1 GPU on a.",
    JobState.SUSPECT: "Nothing is heard of it",
    JobState.LOST: "Nothing is heard of it",
    JobState.STOPPING: "It is being stopped",
    JobState.SUCCEEDED: "It succeeded with exit code 0 in 1 attempt.",
    JobState.FAILED: "It failed with exit code 3 after 1 attempt: its own program failed.",
    JobState.CANCELLED: "It was cancelled after 1 attempt",
}


def test_every_state_has_its_sentence(sqlite_office: Office) -> None:
    office = sqlite_office
    on = node("a", len(SENTENCES))
    office.nodes(on)
    aside = {JobState.HELD: ReasonCode.HELD, JobState.QUARANTINED: ReasonCode.QUARANTINED}
    for index, (state, words) in enumerate(SENTENCES.items()):
        job = office.submit()
        office.bring_to(job.id, state, on, (index,))
        found = _explain(office, job.id)
        assert words in found.summary
        assert (found.state, found.ahead) == (state, 0)
        assert [reason.code for reason in found.reasons] == [
            code for of, code in aside.items() if of is state
        ]


def test_who_holds_a_job_and_who_cancelled_it_is_told(office: Office) -> None:
    job = office.submit()
    office.do(service.hold, USER, job.id, now=office.now, ids=office.ids)
    assert _explain(office, job.id).summary == (
        "It is held (held by ann) until somebody releases it."
    )
    office.do(service.cancel, USER, job.id, now=office.now, ids=office.ids)
    assert _explain(office, job.id).summary == (
        "It was cancelled before it started (cancelled by ann)."
    )


def test_a_foreign_job_is_not_explained(office: Office) -> None:
    office.tenant(RED)
    job = office.submit(actor(RED))
    with pytest.raises(NotFoundError):
        _explain(office, job.id)
