from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import func, select
from support.builders import job_spec, node
from support.store import document
from support.usecases import LIMITS, ROOT, USER, Office, actor

from scheduler import service
from scheduler.errors import (
    ForbiddenError,
    IdempotencyError,
    InfeasibleError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
)
from scheduler.model.access import Role
from scheduler.model.lifecycle import JobState
from scheduler.model.quantity import SYSTEM_TENANT, TenantId
from scheduler.model.view import SubmitResult
from scheduler.store.idempotency import PURGE_EVERY
from scheduler.store.jobs import class_key
from scheduler.store.snapshot import load_delta
from scheduler.store.tables import history, idempotency, jobs


def test_an_accepted_job_waits_with_history_journal_and_one_audit_row(office: Office) -> None:
    job = office.submit(spec=job_spec("hello", priority=70, gpus=2))
    assert job.state is JobState.PENDING
    assert office.job(job.id) == job
    (entry,) = office.ask(service.job_history, USER, job.id)
    assert (entry.seq, entry.from_state, entry.to_state) == (1, None, JobState.PENDING)
    assert office.ask(service.head_revision) == job.revision
    (event,) = office.ask(service.events_after, USER, 0, limit=10)
    assert (event.kind, event.object_id, event.revision) == ("job", job.id, job.revision)
    (audited,) = office.audited()
    assert (audited.action, audited.outcome, audited.object_id) == (
        "jobs.submit",
        "accepted",
        job.id,
    )


def test_the_cycle_sees_the_job_as_it_was_submitted(office: Office) -> None:
    spec = job_spec(gpus=4, gpu_models=("H200", "H100"), priority=9)
    job = office.submit(spec=spec)
    (waiting,) = office.read(lambda tx: load_delta(tx, 0)).waiting
    assert waiting.shape == spec.shape == job.shape
    assert (waiting.id, waiting.class_key, waiting.priority) == (job.id, job.class_key, 9)


def test_jobs_of_one_class_share_a_key_and_others_do_not(office: Office) -> None:
    shape = job_spec().shape
    queue = job_spec().queue
    key = class_key(TenantId("default"), queue, shape)
    assert len(key) == 32
    assert key == class_key(TenantId("default"), queue, job_spec(priority=3).shape)
    assert key != class_key(TenantId("red"), queue, shape)
    assert key != class_key(TenantId("default"), queue, replace(shape, tasks=2))


def test_the_same_key_and_body_make_one_job(office: Office) -> None:
    first = office.submit(key="once")
    office.bring_to(first.id, JobState.HELD, node())
    again = office.write(lambda tx: _submit(office, tx, key="once"))
    assert again.replayed
    assert again.job == office.job(first.id)
    assert office.read(lambda tx: tx.connection.scalar(select(func.count()).select_from(jobs))) == 1
    assert [row.outcome for row in office.audited()] == ["accepted", "replayed"]


def test_the_same_key_with_another_body_is_refused(office: Office) -> None:
    office.submit(key="once")
    with pytest.raises(IdempotencyError):
        office.submit(spec=job_spec(gpus=2), key="once")
    assert office.submit(actor(name="bob"), spec=job_spec(gpus=2), key="once").attempts == 0


def test_a_key_used_for_one_tenant_reveals_nothing_for_another(office: Office) -> None:
    office.tenant(TenantId("red"))
    office.submit(ROOT, key="once")
    with pytest.raises(IdempotencyError):
        office.submit(replace(ROOT, acts_for=TenantId("red")), key="once")


def test_a_refused_job_leaves_its_key_free(office: Office) -> None:
    office.nodes(node(gpus=4))
    with pytest.raises(InfeasibleError):
        office.submit(spec=job_spec(gpus=8), key="once")
    assert office.submit(spec=job_spec(gpus=4), key="once").state is JobState.PENDING


def test_an_expired_key_is_free_again_and_old_keys_go(office: Office) -> None:
    first = office.submit(key="old-0")
    for number in range(1, 6):
        office.submit(key=f"old-{number}")
    office.clock.advance(LIMITS.idempotency_keep_s + 10)
    second = office.submit(spec=job_spec(gpus=2), key="old-0")
    assert second.id != first.id
    assert office.submit(spec=job_spec(gpus=2), key="old-0").id == second.id
    fresh = {f"new-{number}" for number in range(PURGE_EVERY)}
    for key in sorted(fresh):
        office.submit(key=key)
    kept = office.read(lambda tx: set(tx.connection.scalars(select(idempotency.c.key))))
    assert kept == {"old-0"} | fresh, "purged at the latest after PURGE_EVERY keys"


@pytest.mark.parametrize("key", ["", "x" * 256, "a\x00b", "line\nbreak", "\ud800"])
def test_unusable_keys_are_the_callers_fault(sqlite_office: Office, key: str) -> None:
    with pytest.raises(InvalidRequestError):
        sqlite_office.submit(key=key)


def test_an_unknown_queue_is_named(office: Office) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        office.submit(spec=job_spec(queue="fast"))
    assert raised.value.problems[0].path == "spec.queue"


def test_an_unknown_tenant_has_no_queue(office: Office) -> None:
    with pytest.raises(InvalidRequestError):
        office.submit(replace(ROOT, acts_for=TenantId("nobody")))


def test_what_never_fits_is_refused_with_its_dimension(office: Office) -> None:
    office.nodes(node(gpus=8))
    with pytest.raises(InfeasibleError) as raised:
        office.submit(spec=job_spec(gpus=16))
    assert raised.value.dimension == "gpus"
    assert str(raised.value) == "task asks 16 gpus; the largest node has 8 (dimension gpus)"


def test_the_verdict_follows_the_nodes(office: Office) -> None:
    assert office.submit(spec=job_spec(gpus=16)).state is JobState.PENDING
    office.nodes(node("a", 8))
    with pytest.raises(InfeasibleError):
        office.submit(spec=job_spec(gpus=16))
    office.nodes(node("a", 8), node("b", 16))
    assert office.submit(spec=job_spec(gpus=16)).state is JobState.PENDING
    office.nodes(node("a", 8))
    with pytest.raises(InfeasibleError):
        office.submit(spec=job_spec(gpus=16))


def test_a_dry_run_checks_and_keeps_nothing(office: Office) -> None:
    office.nodes(node(gpus=8))
    made = office.read(lambda tx: _submit(office, tx, dry_run=True, key="once"))
    assert (made.replayed, made.job.revision) == (False, 0)
    with pytest.raises(InfeasibleError):
        office.read(lambda tx: _submit(office, tx, dry_run=True, gpus=9))
    assert (
        office.read(lambda tx: tx.connection.scalar(select(func.count()).select_from(history))) == 0
    )
    with pytest.raises(NotFoundError):
        office.job(made.job.id)


def _submit(
    office: Office, tx: object, *, key: str | None = None, dry_run: bool = False, gpus: int = 1
) -> SubmitResult:
    spec = job_spec(gpus=gpus)
    return service.submit(
        tx,  # type: ignore[arg-type]  # a Transaction, which lambdas above cannot spell
        USER,
        spec,
        document(spec),
        idempotency_key=key,
        now=office.now,
        ids=office.ids,
        limits=LIMITS,
        dry_run=dry_run,
    )


def test_a_tenant_at_its_bound_is_refused_until_jobs_leave(office: Office) -> None:
    office.tenant(TenantId("red"))
    limits = service.Limits(waiting_jobs_max=2, idempotency_keep_s=60.0)
    first = office.submit(limits=limits)
    office.submit(limits=limits)
    with pytest.raises(OverloadedError) as raised:
        office.submit(limits=limits)
    assert raised.value.retry_after_s > 0
    assert office.submit(actor(TenantId("red")), limits=limits).tenant == "red"
    office.do(service.cancel, USER, first.id, now=office.now, ids=office.ids)
    assert office.submit(limits=limits).state is JobState.PENDING
    with pytest.raises(OverloadedError):
        office.submit(limits=limits)


def test_a_full_tenant_is_not_counted_for_every_refusal(office: Office) -> None:
    limits = service.Limits(waiting_jobs_max=1, idempotency_keep_s=60.0)
    job = office.submit(limits=limits)
    with pytest.raises(OverloadedError):
        office.submit(limits=limits)
    office.do(service.cancel, USER, job.id, now=office.now, ids=office.ids)
    office.clock.advance(-0.5)  # submit advances by one second: half a second after the count
    with pytest.raises(OverloadedError):
        office.submit(limits=limits)
    assert office.submit(limits=limits).state is JobState.PENDING


def test_a_failed_submission_does_not_use_up_room(office: Office) -> None:
    limits = service.Limits(waiting_jobs_max=1, idempotency_keep_s=60.0)
    with pytest.raises(InvalidRequestError):
        office.submit(spec=job_spec(queue="none"), limits=limits)
    assert office.submit(limits=limits).state is JobState.PENDING


@pytest.mark.parametrize(
    "who",
    [
        actor(role=Role.VIEWER),
        actor(role=Role.AGENT),
        actor(read_only=True),
        actor(SYSTEM_TENANT, Role.AGENT),
        actor(TenantId("red"), Role.ADMIN, acts_for=TenantId("default")),
    ],
)
def test_only_those_who_may_write_submit(sqlite_office: Office, who: object) -> None:
    with pytest.raises(ForbiddenError):
        sqlite_office.submit(who)  # type: ignore[arg-type]  # parametrize loses the type


def test_the_document_decides_the_stored_api_version(office: Office) -> None:
    job = office.submit()
    stored = office.read(
        lambda tx: tx.connection.scalar(select(jobs.c.api_version).where(jobs.c.id == job.id))
    )
    assert stored == "haversack.dev/v1alpha1"
    assert office.job(job.id).document == document(job_spec())
