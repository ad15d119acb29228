from __future__ import annotations

from dataclasses import replace

import pytest
from support.builders import job_spec, node
from support.usecases import RED, ROOT, USER, Office, actor

from scheduler import service
from scheduler.errors import ForbiddenError, NotFoundError, PreconditionError
from scheduler.model.access import Role
from scheduler.model.lifecycle import JobState
from scheduler.model.node import Health
from scheduler.model.quantity import SYSTEM_TENANT, GpuId
from scheduler.model.view import GpuView, NodeView
from scheduler.store.snapshot import load_delta

A, B = node("a", 2), node("b", 1)
OPERATOR = actor(SYSTEM_TENANT, Role.OPERATOR, name="olga")


def _gpus(office: Office) -> tuple[GpuView, ...]:
    return office.ask(service.list_gpus, USER)


def _nodes(office: Office) -> tuple[NodeView, ...]:
    return office.ask(service.list_nodes, USER)


def test_nodes_are_listed_whole_with_their_use(office: Office) -> None:
    office.nodes(B, A)
    job = office.submit(spec=job_spec(gpus=2))
    office.place(job.id, A, (0, 1))
    first, second = _nodes(office)
    assert (first.node, second.node) == (A, B)
    assert (first.gpus_used, first.cpu_milli_used, first.memory_mib_used) == (2, 1_000, 1_024)
    assert (second.gpus_used, second.cpu_milli_used) == (0, 0)


def test_nodes_and_gpus_are_found_by_id_or_name(office: Office) -> None:
    office.nodes(A)
    for key in (A.id, A.name):
        assert office.ask(service.get_node, USER, key).node == A
    assert office.ask(service.get_gpu, USER, A.gpus[1].id).index == 1
    for bad in ("n-none", "a\x00", ""):
        with pytest.raises(NotFoundError):
            office.ask(service.get_node, USER, bad)
        with pytest.raises(NotFoundError):
            office.ask(service.get_gpu, USER, GpuId(bad))


def test_a_holder_is_named_to_its_own_tenant_only(office: Office) -> None:
    office.tenant(RED)
    office.nodes(A)
    job = office.submit(actor(RED), spec=job_spec("secret"))
    office.place(job.id, A)
    for who, named in ((actor(RED), True), (ROOT, True), (USER, False)):
        held, free = office.ask(service.list_gpus, who)
        assert (held.in_use, free.in_use) == (True, False)
        assert (held.job_id, held.job_name) == ((job.id, "secret") if named else (None, None))


def test_what_left_is_shown_only_while_it_is_held(office: Office) -> None:
    office.nodes(A, B)
    job = office.submit()
    office.place(job.id, A)
    office.nodes()
    (gone,) = _nodes(office)
    assert (gone.node.id, gone.node.health, gone.gpus_used) == (A.id, Health.UNKNOWN, 1)
    assert [(g.id, g.health) for g in _gpus(office)] == [(A.gpus[0].id, "unknown")]
    office.do(service.cancel, USER, job.id, now=office.now, ids=office.ids)
    assert _nodes(office) == ()
    assert _gpus(office) == ()


def test_cordons_reach_the_cycle_and_come_off_again(office: Office) -> None:
    office.nodes(A, B)
    base = office.ask(service.head_revision)
    before = office.ask(service.get_node, USER, "a")
    found = office.do(service.cordon_node, OPERATOR, "a", cordoned=True, now=office.now)
    assert (found.node.cordoned, found.version) == (True, before.version + 1)
    (changed,) = office.read(lambda tx: load_delta(tx, base)).nodes
    assert changed == replace(A, cordoned=True)
    found = office.do(service.cordon_node, OPERATOR, A.id, cordoned=False, now=office.now)
    assert not found.node.cordoned
    assert [row.outcome for row in office.audited()] == ["done", "done"]


def test_a_cordoned_gpu_changes_its_node_too(office: Office) -> None:
    office.nodes(A)
    base = office.ask(service.head_revision)
    node_version = office.ask(service.get_node, USER, "a").version
    gpu_id = A.gpus[1].id
    found = office.do(service.cordon_gpu, OPERATOR, gpu_id, cordoned=True, now=office.now)
    assert (found.cordoned, found.version) == (True, 2)
    (changed,) = office.read(lambda tx: load_delta(tx, base)).nodes
    assert [g.cordoned for g in changed.gpus] == [False, True]
    assert office.ask(service.get_node, USER, "a").version == node_version + 1


def test_a_second_cordon_changes_nothing_but_is_audited(office: Office) -> None:
    office.nodes(A)
    for _ in range(2):
        found = office.do(service.cordon_gpu, OPERATOR, A.gpus[0].id, cordoned=True, now=office.now)
    assert found.version == 2
    assert [row.outcome for row in office.audited()] == ["done", "already"]


def test_a_stale_version_is_refused(office: Office) -> None:
    office.nodes(A)
    with pytest.raises(PreconditionError):
        office.do(service.cordon_node, OPERATOR, "a", cordoned=True, now=office.now, if_match=9)
    with pytest.raises(PreconditionError):
        office.do(
            service.cordon_gpu, OPERATOR, A.gpus[0].id, cordoned=True, now=office.now, if_match=9
        )
    assert not _nodes(office)[0].node.cordoned


def test_only_operators_of_the_system_cordon(sqlite_office: Office) -> None:
    office = sqlite_office
    office.nodes(A)
    for who in (
        actor(RED, Role.ADMIN),
        actor(SYSTEM_TENANT, Role.USER),
        actor(SYSTEM_TENANT, Role.ADMIN, read_only=True),
    ):
        with pytest.raises(ForbiddenError):
            office.do(service.cordon_node, who, "a", cordoned=True, now=office.now)
        with pytest.raises(ForbiddenError):
            office.do(service.cordon_gpu, who, A.gpus[0].id, cordoned=True, now=office.now)


def test_queues_count_the_jobs_that_are_not_over(office: Office) -> None:
    office.nodes(node("a", 8))
    states = [
        JobState.PENDING,
        JobState.PENDING,
        JobState.HELD,
        JobState.QUARANTINED,
        JobState.RUNNING,
        JobState.STOPPING,
        JobState.SUCCEEDED,
    ]
    for index, state in enumerate(states):
        office.bring_to(office.submit().id, state, node("a", 8), gpus=(index,))
    (queue,) = office.ask(service.list_queues, USER)
    assert (queue.name, queue.tenant) == ("default", "default")
    assert (queue.waiting, queue.running, queue.held) == (2, 2, 2)


def test_a_tenant_sees_its_own_queues(office: Office) -> None:
    office.tenant(RED)
    office.submit()
    (queue,) = office.ask(service.list_queues, actor(RED))
    assert (queue.tenant, queue.waiting) == (RED, 0)
    assert len(office.ask(service.list_queues, ROOT)) == 2
