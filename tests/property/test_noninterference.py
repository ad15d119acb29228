"""I12: whatever one tenant calls, it changes nothing of another's and learns nothing of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.builders import job_spec, node
from support.clock import ManualClock
from support.store import document
from support.usecases import LIMITS, ROOT, Office, actor

from scheduler import service
from scheduler.errors import HaversackError
from scheduler.model.access import Actor, Role
from scheduler.model.lifecycle import JobState
from scheduler.model.quantity import GpuId, JobId, TenantId
from scheduler.model.view import JobFilter
from scheduler.store.database import Database
from scheduler.store.transaction import Transaction
from scheduler.tokens import digest

NODE = node("shared", 8)
VICTIM = TenantId("victim")
SECRET = "top-secret-name"
KEY = "an-idempotency-key"

Call = Callable[[Transaction, Actor, str], object]


@dataclass(frozen=True, slots=True)
class World:
    """A store with a tenant whose things must stay unseen and untouched.

    Attributes:
        targets: ids of the victim's objects, that the intruder somehow guessed.
        marks: texts that may never show up in an answer to somebody else.
    """

    office: Office
    targets: tuple[str, ...]
    marks: tuple[str, ...]


@pytest.fixture
def world(sqlite_database: Database, clock: ManualClock) -> World:
    office = Office(sqlite_database, clock)
    office.tenant(VICTIM)
    office.nodes(NODE)
    victim = actor(VICTIM, Role.ADMIN, name="vera")
    states = (JobState.PENDING, JobState.HELD, JobState.RUNNING, JobState.FAILED)
    jobs = [
        office.submit(victim, job_spec(f"{SECRET}-{index}"), key=f"{KEY}-{index}")
        for index in range(len(states))
    ]
    for index, (job, state) in enumerate(zip(jobs, states, strict=True)):
        office.bring_to(job.id, state, NODE, (index,))
    token = office.write(
        lambda tx: service.create_token(
            tx,
            ROOT,
            tenant=VICTIM,
            name="vera",
            role=Role.ADMIN,
            description=SECRET,
            expires_at=None,
            sha256_hex=digest("victims"),
            read_only=False,
            now=office.now,
            ids=office.ids,
        )
    )
    attempts = office.read(
        lambda tx: [a.id for job in jobs for a in service.job_attempts(tx, ROOT, job.id)]
    )
    ids = (*(job.id for job in jobs), token.id, token.principal, *attempts, VICTIM)
    return World(office, ids, (*ids, SECRET, victim.principal))


def _calls(office: Office) -> dict[str, Call]:
    """Everything an actor can ask for, with one argument that names something."""
    now, ids = office.now, office.ids
    verbs = (service.cancel, service.hold, service.release, service.requeue)
    spec = job_spec("own")

    def submit(tx: Transaction, who: Actor, target: str) -> object:
        return service.submit(
            tx,
            replace(who, acts_for=TenantId(target)) if target == VICTIM else who,
            spec,
            document(spec),
            idempotency_key=f"{KEY}-0",
            now=now,
            ids=ids,
            limits=LIMITS,
        )

    def moving(verb: Callable[..., object]) -> Call:
        return lambda tx, who, target: verb(tx, who, JobId(target), now=now, ids=ids)

    def create_token(tx: Transaction, who: Actor, target: str) -> object:
        return service.create_token(
            tx,
            who,
            tenant=TenantId(target),
            name="spy",
            role=Role.VIEWER,
            description="",
            expires_at=None,
            sha256_hex=digest(ids.new("x")),
            read_only=False,
            now=now,
            ids=ids,
        )

    return {
        **{verb.__name__: moving(verb) for verb in verbs},
        "submit": submit,
        "create_token": create_token,
        "revoke": lambda tx, who, target: service.revoke_token(tx, who, target, now=now),
        "tenant": lambda tx, who, target: service.create_tenant(tx, who, target, now=now, ids=ids),
        "tenants": lambda tx, who, _: service.list_tenants(tx, who),
        "tokens": lambda tx, who, _: service.list_tokens(tx, who),
        "job": lambda tx, who, target: service.get_job(tx, who, JobId(target)),
        "jobs": lambda tx, who, _: service.list_jobs(tx, who, JobFilter(), cursor=None, limit=500),
        "jobs-of": lambda tx, who, target: service.list_jobs(
            tx, who, JobFilter(tenant=TenantId(target)), cursor=None, limit=500
        ),
        "attempts": lambda tx, who, target: service.job_attempts(tx, who, JobId(target)),
        "history": lambda tx, who, target: service.job_history(tx, who, JobId(target)),
        "explain": lambda tx, who, target: service.explain(tx, who, JobId(target), now=now),
        "events": lambda tx, who, _: service.events_after(tx, who, 0, limit=500),
        "audit": lambda tx, who, _: service.list_audit(tx, who, cursor=None, limit=500),
        "decisions": lambda tx, who, _: service.list_decisions(tx, who, cursor=None, limit=500),
        "queues": lambda tx, who, _: service.list_queues(tx, who),
        "nodes": lambda tx, who, _: service.list_nodes(tx, who),
        "gpus": lambda tx, who, _: service.list_gpus(tx, who),
        "cordon": lambda tx, who, _: service.cordon_node(tx, who, NODE.id, cordoned=True, now=now),
        "cordon-gpu": lambda tx, who, _: service.cordon_gpu(
            tx, who, GpuId(NODE.gpus[0].id), cordoned=True, now=now
        ),
    }


def _answer(office: Office, who: Actor, name: str, target: str) -> str:
    """What the caller gets to see: the result, or the error with its hint."""
    call = _calls(office)[name]
    try:
        return repr(office.write(lambda tx: call(tx, who, target)))
    except HaversackError as error:
        return f"{type(error).__name__}: {error} {error.hint}"


def _seen_by_victim(office: Office) -> str:
    """All that the victim itself can observe, and what the cluster offers everyone."""
    victim = actor(VICTIM, Role.ADMIN, name="vera")

    def query(tx: Transaction) -> list[object]:
        page = service.list_jobs(tx, victim, JobFilter(), cursor=None, limit=500)
        return [
            page,
            [service.job_history(tx, victim, job.id) for job in page.items],
            [service.job_attempts(tx, victim, job.id) for job in page.items],
            service.list_tokens(tx, victim),
            service.list_queues(tx, victim),
            service.list_audit(tx, victim, cursor=None, limit=500),
            service.events_after(tx, victim, 0, limit=500),
            service.list_nodes(tx, victim),
            service.list_gpus(tx, victim),
        ]

    return repr(office.read(query))


NAMING = (
    *("cancel", "hold", "release", "requeue", "revoke", "create_token"),
    *("job", "attempts", "history", "explain", "jobs-of"),
)
"""Calls whose argument names an object."""

_serial = count()


@settings(
    max_examples=60,
    deadline=None,
    # One world serves all examples: it must come out of each as it went in.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    role=st.sampled_from([Role.VIEWER, Role.USER, Role.OPERATOR, Role.ADMIN]),
    name=st.sampled_from(["ivan", "vera"]),
    steps=st.lists(st.tuples(st.integers(0), st.integers(0)), min_size=1, max_size=12),
)
def test_an_intruder_neither_changes_nor_learns_anything(
    world: World, role: Role, name: str, steps: list[tuple[int, int]]
) -> None:
    office = world.office
    tenant = TenantId(f"intruder-{next(_serial)}")
    office.tenant(tenant)
    intruder = actor(tenant, role, name=name)
    own = office.submit(actor(tenant))
    targets = (*world.targets, own.id, tenant)
    before = _seen_by_victim(office)
    names = sorted(_calls(office))
    for which, at in steps:
        call, target = names[which % len(names)], targets[at % len(targets)]
        answer = _answer(office, intruder, call, target)
        # An error may repeat what the caller said, and nothing else.
        learned = [mark for mark in world.marks if mark != target and mark in answer]
        assert learned == [], f"{call}({target}) tells {learned}"
    assert _seen_by_victim(office) == before


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    role=st.sampled_from([Role.VIEWER, Role.USER, Role.OPERATOR, Role.ADMIN]),
    call=st.sampled_from(NAMING),
    at=st.integers(0),
)
def test_a_foreign_object_answers_like_none_at_all(
    world: World, role: Role, call: str, at: int
) -> None:
    office = world.office
    tenant = TenantId(f"intruder-{next(_serial)}")
    office.tenant(tenant)
    intruder = actor(tenant, role)
    target = world.targets[at % len(world.targets)]
    foreign = _answer(office, intruder, call, target)
    assert foreign.replace(target, "none") == _answer(office, intruder, call, "none")
