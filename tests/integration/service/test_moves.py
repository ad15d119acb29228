from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import select
from support import ledger
from support.builders import node, virtual_node
from support.usecases import RED, ROOT, USER, Office, actor

from scheduler import service
from scheduler.errors import ConflictError, ForbiddenError, NotFoundError, PreconditionError
from scheduler.model.access import Actor, Role
from scheduler.model.execution import StopOrder
from scheduler.model.lifecycle import EndCause, JobEvent, JobState
from scheduler.model.quantity import JobId
from scheduler.model.view import JobView
from scheduler.store import codec
from scheduler.store.journal import verify_audit_chain
from scheduler.store.tables import attempts, intents

NODE = node("a")
Verb = Callable[..., JobView]
VERBS: dict[str, Verb] = {
    "cancel": service.cancel,
    "hold": service.hold,
    "release": service.release,
    "requeue": service.requeue,
}

AFTER: dict[tuple[str, JobState], JobState] = {
    ("cancel", JobState.PENDING): JobState.CANCELLED,
    ("cancel", JobState.HELD): JobState.CANCELLED,
    ("cancel", JobState.QUARANTINED): JobState.CANCELLED,
    ("cancel", JobState.ASSIGNED): JobState.CANCELLED,
    ("cancel", JobState.LAUNCHING): JobState.STOPPING,
    ("cancel", JobState.RUNNING): JobState.STOPPING,
    ("cancel", JobState.SUSPECT): JobState.STOPPING,
    ("cancel", JobState.LOST): JobState.LOST,
    ("cancel", JobState.STOPPING): JobState.STOPPING,
    ("cancel", JobState.CANCELLED): JobState.CANCELLED,
    ("hold", JobState.PENDING): JobState.HELD,
    ("release", JobState.HELD): JobState.PENDING,
    ("release", JobState.QUARANTINED): JobState.PENDING,
    ("requeue", JobState.QUARANTINED): JobState.PENDING,
    ("requeue", JobState.ASSIGNED): JobState.PENDING,
    ("requeue", JobState.LAUNCHING): JobState.STOPPING,
    ("requeue", JobState.RUNNING): JobState.STOPPING,
}


def _do(
    office: Office, verb: str, job_id: JobId, who: Actor = USER, *, if_match: int | None = None
) -> JobView:
    return office.write(
        lambda tx: VERBS[verb](tx, who, job_id, now=office.now, ids=office.ids, if_match=if_match)
    )


def _job_in(office: Office, state: JobState) -> JobView:
    office.nodes(NODE)
    job = office.submit()
    office.bring_to(job.id, state, NODE)
    found = office.job(job.id)
    assert found.state is state
    return found


def _sound(office: Office) -> None:
    assert office.read(lambda tx: ledger.violations(tx.connection)) == []
    assert office.read(lambda tx: ledger.leaks(tx.connection)) == []
    assert office.read(lambda tx: verify_audit_chain(tx.connection)).broken_at is None


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_in_every_state(sqlite_office: Office, verb: str) -> None:
    office = sqlite_office
    office.nodes(node("a", len(JobState)))
    for index, state in enumerate(JobState):
        job = office.submit()
        office.bring_to(job.id, state, node("a", len(JobState)), (index,))
        job = office.job(job.id)
        assert job.state is state
        _check_verb(office, verb, job)
    _sound(office)


def _check_verb(office: Office, verb: str, job: JobView) -> None:
    audited = len(office.audited())
    expected = AFTER.get((verb, job.state))
    if expected is None:
        with pytest.raises(ConflictError, match=f"it is {job.state}") as raised:
            _do(office, verb, job.id)
        assert raised.value.hint
        assert office.job(job.id) == job
        assert len(office.audited()) == audited
        return
    found = _do(office, verb, job.id)
    assert found.state is expected
    assert found == office.job(job.id)
    rows = office.audited()
    assert len(rows) == audited + 1
    assert (rows[-1].action, rows[-1].object_id) == (f"jobs.{verb}", job.id)
    assert found.desired == ("stop" if verb == "cancel" or job.desired == "stop" else "run")


def test_a_cancelled_waiting_job_is_over_with_its_cause(office: Office) -> None:
    job = _job_in(office, JobState.PENDING)
    found = _do(office, "cancel", job.id)
    assert (found.end_cause, found.finished_at) == (EndCause.CANCELLED, office.now)
    assert found.message == "cancelled by ann"


def test_cancelling_an_assigned_job_frees_what_it_held_at_once(office: Office) -> None:
    job = _job_in(office, JobState.ASSIGNED)
    _do(office, "cancel", job.id)
    (free,) = [g for g in office.ask(service.list_gpus, USER) if g.index == 0]
    assert not free.in_use
    states = office.read(lambda tx: list(tx.connection.scalars(select(intents.c.state))))
    assert states == ["void"]
    _sound(office)


def test_cancelling_a_running_job_orders_one_stop_and_keeps_its_gpus(office: Office) -> None:
    job = _job_in(office, JobState.RUNNING)
    _do(office, "cancel", job.id)
    version = office.job(job.id).version
    assert _do(office, "cancel", job.id).version == version
    assert [row.outcome for row in office.audited()][-2:] == ["done", "already"]
    order = _stop_order(office)
    assert order.cause is EndCause.CANCELLED
    held = [g for g in office.ask(service.list_gpus, USER) if g.in_use]
    assert [g.job_id for g in held] == [job.id]
    office.end(job.id, JobEvent.STOPPED_CANCELLED, EndCause.CANCELLED)
    assert office.job(job.id).state is JobState.CANCELLED
    _sound(office)


def _stop_order(office: Office) -> StopOrder:
    """The one stop intent there is."""
    found = office.read(
        lambda tx: list(
            tx.connection.scalars(select(intents.c.order_json).where(intents.c.kind == "stop"))
        )
    )
    assert len(found) == 1
    return codec.stop_order(found[0])


def test_a_requeued_job_stops_like_a_preempted_one_and_waits_again(office: Office) -> None:
    job = _job_in(office, JobState.RUNNING)
    assert _do(office, "requeue", job.id).desired == "run"
    assert _stop_order(office).cause is EndCause.PREEMPTED
    office.end(job.id, JobEvent.STOPPED_PREEMPTED, EndCause.PREEMPTED)
    again = office.job(job.id)
    assert (again.state, again.attempts, again.retries_used) == (JobState.PENDING, 1, 0)
    office.place(job.id, NODE)
    numbers = office.read(lambda tx: list(tx.connection.scalars(select(attempts.c.number))))
    assert sorted(numbers) == [1, 2]
    _sound(office)


def test_a_cancel_while_stopping_for_another_cause_only_records_the_wish(office: Office) -> None:
    job = _job_in(office, JobState.RUNNING)
    stopping = _do(office, "requeue", job.id)
    found = _do(office, "cancel", job.id)
    assert (found.state, found.desired) == (JobState.STOPPING, "stop")
    assert found.version == stopping.version + 1
    assert _stop_order(office).cause is EndCause.PREEMPTED
    last = office.ask(service.events_after, USER, 0, limit=100)[-1]
    assert (last.object_id, last.revision) == (job.id, found.revision)


def test_leaving_quarantine_starts_afresh(office: Office) -> None:
    job = _job_in(office, JobState.QUARANTINED)
    office.clock.advance(100)
    assert _do(office, "release", job.id).eligible_at == office.now


def test_a_stale_version_is_refused_and_the_right_one_is_not(office: Office) -> None:
    for verb in VERBS:
        job = _job_in(office, next(state for name, state in AFTER if name == verb))
        with pytest.raises(PreconditionError):
            _do(office, verb, job.id, if_match=job.version + 1)
        assert office.job(job.id) == job
        assert _do(office, verb, job.id, if_match=job.version).version > job.version


def test_unknown_jobs_are_not_found(office: Office) -> None:
    for verb in VERBS:
        for job_id in ("j-none", "j\x00", "", "\ud800", "x" * 300):
            with pytest.raises(NotFoundError):
                _do(office, verb, JobId(job_id))


def test_a_foreign_job_looks_like_none(office: Office) -> None:
    office.tenant(RED)
    job = _job_in(office, JobState.PENDING)
    stranger = actor(RED, Role.ADMIN)
    for verb in VERBS:
        with pytest.raises(NotFoundError) as foreign:
            _do(office, verb, job.id, stranger)
        with pytest.raises(NotFoundError) as none:
            _do(office, verb, JobId("j-none"), stranger)
        assert str(foreign.value).replace(job.id, "j-none") == str(none.value)


def test_readers_change_nothing(sqlite_office: Office) -> None:
    job = _job_in(sqlite_office, JobState.PENDING)
    for verb in VERBS:
        for who in (actor(role=Role.VIEWER), actor(read_only=True)):
            with pytest.raises(ForbiddenError):
                _do(sqlite_office, verb, job.id, who)
    assert sqlite_office.job(job.id) == job


def test_operators_of_the_system_change_jobs_of_any_tenant(office: Office) -> None:
    office.tenant(RED)
    job = office.submit(actor(RED))
    assert _do(office, "cancel", job.id, ROOT).state is JobState.CANCELLED
    assert office.audited()[-1].tenant_id == RED


def test_a_view_says_when_its_attempt_is_simulated(office: Office) -> None:
    simulated = virtual_node("v")
    office.nodes(simulated, NODE)
    on_virtual, on_real = office.submit(), office.submit()
    assert not on_virtual.simulated
    office.place(on_virtual.id, simulated)
    office.place(on_real.id, NODE)
    assert office.job(on_virtual.id).simulated
    assert not office.job(on_real.id).simulated
