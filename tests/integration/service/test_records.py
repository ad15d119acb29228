"""Journal, audit log and decisions as tenants read them."""

from __future__ import annotations

import pytest
from support.builders import node, placement, task_placement
from support.usecases import BLUE, RED, ROOT, USER, Office, actor

from scheduler import service
from scheduler.errors import ForbiddenError, InvalidRequestError, NotFoundError
from scheduler.model.access import Role
from scheduler.model.lifecycle import JobState
from scheduler.model.plan import Eviction, Plan, SolverReport
from scheduler.model.quantity import SYSTEM_TENANT, DecisionId
from scheduler.store.journal import verify_audit_chain

NODE = node("a", 4)
OPERATOR = actor(role=Role.OPERATOR)


def test_events_are_the_tenants_own_and_the_clusters(office: Office) -> None:
    office.tenant(RED)
    office.nodes(NODE)
    mine, theirs = office.submit(), office.submit(actor(RED))
    office.place(theirs.id, NODE)
    seen = office.ask(service.events_after, USER, 0, limit=100)
    assert [(event.kind, event.object_id) for event in seen if event.kind != "decision"] == [
        ("node", NODE.id),
        ("job", mine.id),
    ]
    assert not any(theirs.id in str(event) for event in seen)
    everything = office.ask(service.events_after, ROOT, 0, limit=100)
    assert [event.revision for event in everything] == list(range(1, len(everything) + 1))
    assert len(everything) == office.ask(service.head_revision)


def test_events_go_on_from_a_revision_and_stop_at_the_limit(office: Office) -> None:
    jobs = [office.submit() for _ in range(3)]
    first = office.ask(service.events_after, USER, 0, limit=2)
    rest = office.ask(service.events_after, USER, first[-1].revision, limit=2)
    assert [event.object_id for event in (*first, *rest)] == [job.id for job in jobs]
    assert office.ask(service.events_after, USER, 99, limit=2) == ()
    with pytest.raises(InvalidRequestError):
        office.ask(service.events_after, USER, 0, limit=501)


def test_the_audit_log_pages_newest_first_within_the_tenant(office: Office) -> None:
    office.tenant(RED)
    for _ in range(3):
        office.submit()
    office.submit(actor(RED))
    page = office.ask(service.list_audit, OPERATOR, cursor=None, limit=2)
    rest = office.ask(service.list_audit, OPERATOR, cursor=page.next_cursor, limit=2)
    entries = [*page.items, *rest.items]
    assert [entry.action for entry in entries] == ["jobs.submit"] * 3
    assert [entry.id for entry in entries] == sorted((e.id for e in entries), reverse=True)
    assert rest.next_cursor is None
    assert len(office.ask(service.list_audit, ROOT, cursor=None, limit=9).items) == 5
    with pytest.raises(ForbiddenError):
        office.ask(service.list_audit, USER, cursor=None, limit=1)


def test_denials_are_chained_like_everything_else(office: Office) -> None:
    office.do(
        service.audit_denied, USER, "jobs.cancel", "j\x00" + "x" * 500, {"why": "role"}, office.now
    )
    office.do(service.audit_denied, None, "jobs.read", "j-1", {}, office.now)
    known, anonymous = office.audited()
    assert (known.outcome, known.tenant_id, len(known.object_id)) == ("denied", "default", 128)
    assert (anonymous.principal_id, anonymous.tenant_id) == ("anonymous", SYSTEM_TENANT)
    assert office.read(lambda tx: verify_audit_chain(tx.connection)).rows == 2


def _two_tenants_decision(office: Office) -> tuple[DecisionId, str, str]:
    """A decision that places one job of each of two tenants and refuses another of each."""
    office.tenant(RED)
    office.nodes(NODE)
    mine, theirs, gone_mine, gone_theirs = (
        office.submit(who) for who in (USER, actor(RED), USER, actor(RED))
    )
    for job in (gone_mine, gone_theirs):
        office.bring_to(job.id, JobState.HELD, NODE)
    report = office.commit(
        Plan(
            snapshot_revision=1,
            placements=tuple(
                placement(job.id, task_placement(NODE, (index,)))
                for index, job in enumerate((mine, theirs, gone_mine, gone_theirs))
            ),
            value=2.0,
            bound=4.0,
            solver=SolverReport("milp", 2.0, notes=(f"job {theirs.id} was odd",)),
        )
    )
    assert report.decision_id is not None
    return report.decision_id, mine.id, theirs.id


def test_a_tenant_reads_of_a_decision_what_names_its_own_jobs(office: Office) -> None:
    decision_id, mine, theirs = _two_tenants_decision(office)
    own = office.ask(service.get_decision, USER, decision_id)
    assert (own.placed, own.refused, own.gap, own.policy) == (2, 2, 0.5, "priority-age")
    assert theirs not in str(own.document)
    placements = own.document["placements"]
    refused = own.document["refused"]
    assert isinstance(placements, list)
    assert isinstance(refused, list)
    assert [entry["job_id"] for entry in placements if entry["job_id"] == mine] == [mine]
    assert len(refused) == 1
    whole = office.ask(service.get_decision, ROOT, decision_id)
    assert theirs in str(whole.document)
    assert "was odd" in str(whole.document)


def test_an_eviction_names_only_the_readers_side(office: Office) -> None:
    office.tenant(RED)
    office.nodes(NODE)
    victim, winner = office.submit(actor(RED)), office.submit()
    office.bring_to(victim.id, JobState.RUNNING, NODE)
    (attempt,) = office.ask(service.job_attempts, ROOT, victim.id)
    report = office.commit(
        Plan(snapshot_revision=1, evictions=(Eviction(attempt.id, winner.id, 1.0),))
    )
    for who, seen in ((actor(RED), (attempt.id, None)), (USER, (None, winner.id))):
        page = office.ask(service.list_decisions, who, cursor=None, limit=1)
        (decision,) = page.items
        assert decision.id == report.decision_id
        evictions = decision.document["evictions"]
        assert isinstance(evictions, list)
        assert [(e["attempt_id"], e["for_job"]) for e in evictions] == [seen]
    office.tenant(BLUE)
    outsider = office.ask(service.list_decisions, actor(BLUE), cursor=None, limit=1)
    assert outsider.items[0].document["evictions"] == []


def test_decisions_page_newest_first(office: Office) -> None:
    office.nodes(NODE)
    made = [office.place(office.submit().id, NODE, (index,)).decision_id for index in range(3)]
    page = office.ask(service.list_decisions, USER, cursor=None, limit=2)
    rest = office.ask(service.list_decisions, USER, cursor=page.next_cursor, limit=2)
    assert [decision.id for decision in (*page.items, *rest.items)] == made[::-1]
    assert rest.next_cursor is None


@pytest.mark.parametrize("decision_id", ["d-none", "d\x00"])
def test_unknown_decisions_are_not_found(sqlite_office: Office, decision_id: str) -> None:
    with pytest.raises(NotFoundError):
        sqlite_office.ask(service.get_decision, USER, DecisionId(decision_id))
