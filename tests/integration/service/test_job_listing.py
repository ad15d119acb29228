from __future__ import annotations

from itertools import product
from operator import attrgetter

import pytest
from support.builders import job_spec, node
from support.outside import outside_gang
from support.usecases import RED, ROOT, USER, Office, actor

from scheduler import service
from scheduler.errors import ForbiddenError, InvalidRequestError, NotFoundError
from scheduler.model.access import Actor, Role
from scheduler.model.lifecycle import EndCause, JobState
from scheduler.model.quantity import JobId
from scheduler.model.view import SORTS, JobFilter, JobView
from scheduler.store import lease
from scheduler.store.outside import adopt


def _all(office: Office, wanted: JobFilter, limit: int) -> list[JobView]:
    """Every page of a listing, one after the other."""
    found: list[JobView] = []
    cursor = None
    while True:
        page = office.ask(service.list_jobs, USER, wanted, cursor=cursor, limit=limit)
        found.extend(page.items)
        assert len(page.items) <= limit
        if page.next_cursor is None:
            return found
        cursor = page.next_cursor


def test_pages_add_up_to_the_sorted_whole(sqlite_office: Office) -> None:
    office = sqlite_office
    for number in range(7):
        office.submit(spec=job_spec(f"job-{number % 3}", priority=number % 2))
        if number % 2:
            office.clock.advance(-1.0)  # two jobs of one instant
    for sort, limit in product(SORTS, (1, 3, 7, 100)):
        found = _all(office, JobFilter(sort=sort), limit)
        assert len({job.id for job in found}) == 7
        key = attrgetter(sort.removeprefix("-"), "id")
        assert found == sorted(found, key=key, reverse=sort[0] == "-")


def test_every_sort_pages_on_each_database(office: Office) -> None:
    for number in range(3):
        office.submit(spec=job_spec(f"job-{number}", priority=number))
    for sort in SORTS:
        assert len(_all(office, JobFilter(sort=sort), 2)) == 3


def test_new_jobs_do_not_disturb_a_reader_in_the_middle(sqlite_office: Office) -> None:
    office = sqlite_office
    ids = [office.submit().id for _ in range(4)]
    first = office.ask(service.list_jobs, USER, JobFilter(), cursor=None, limit=2)
    office.submit()
    second = office.ask(service.list_jobs, USER, JobFilter(), cursor=first.next_cursor, limit=2)
    assert [job.id for job in (*first.items, *second.items)] == ids[::-1]
    assert second.next_cursor is None


def test_filters_select(office: Office) -> None:
    office.tenant(RED)
    held = office.submit(spec=job_spec("alpha"))
    office.bring_to(held.id, JobState.HELD, node())
    waiting = office.submit(spec=job_spec("beta"))
    red = office.submit(actor(RED), spec=job_spec("alpha"))

    def ids(wanted: JobFilter) -> set[str]:
        page = office.ask(service.list_jobs, ROOT, wanted, cursor=None, limit=10)
        return {job.id for job in page.items}

    assert ids(JobFilter()) == {held.id, waiting.id, red.id}
    assert ids(JobFilter(states=(JobState.HELD,))) == {held.id}
    assert ids(JobFilter(states=(JobState.HELD, JobState.PENDING), name="alpha")) == {
        held.id,
        red.id,
    }
    assert ids(JobFilter(tenant=RED)) == {red.id}
    assert ids(JobFilter(queue="other")) == set()
    assert ids(JobFilter(name="al\x00pha")) == set()


def test_a_tenant_lists_and_reads_only_its_own(office: Office) -> None:
    office.tenant(RED)
    mine, theirs = office.submit(), office.submit(actor(RED))
    page = office.ask(service.list_jobs, USER, JobFilter(tenant=RED), cursor=None, limit=10)
    assert page.items == ()
    page = office.ask(service.list_jobs, USER, JobFilter(), cursor=None, limit=10)
    assert [job.id for job in page.items] == [mine.id]
    for read in (service.get_job, service.job_attempts, service.job_history):
        with pytest.raises(NotFoundError):
            office.ask(read, USER, theirs.id)


@pytest.mark.parametrize("limit", [0, 501])
def test_limits_are_bounded(sqlite_office: Office, limit: int) -> None:
    with pytest.raises(InvalidRequestError):
        sqlite_office.ask(service.list_jobs, USER, JobFilter(), cursor=None, limit=limit)


def test_unknown_sorts_and_foreign_cursors_are_refused(sqlite_office: Office) -> None:
    office = sqlite_office
    for wanted, cursor in ((JobFilter(sort="state"), None), (JobFilter(), "garbage")):
        with pytest.raises(InvalidRequestError):
            office.ask(service.list_jobs, USER, wanted, cursor=cursor, limit=1)


def test_attempts_tell_where_and_how_they_ended(office: Office) -> None:
    on = node("a")
    office.nodes(on)
    job = office.submit()
    office.bring_to(job.id, JobState.FAILED, on, gpus=(2,))
    (attempt,) = office.ask(service.job_attempts, USER, job.id)
    assert (attempt.number, attempt.live, attempt.end_cause) == (1, False, EndCause.USER)
    assert attempt.tasks[0].gpu_ids == (on.gpus[2].id,)
    assert attempt.exit is not None
    assert attempt.exit.exit_code == 3
    moves = office.ask(service.job_history, USER, job.id)
    assert [entry.seq for entry in moves] == [1, 2, 3, 4, 5]
    assert moves[-1].to_state is JobState.FAILED


def test_agents_do_not_read_jobs(sqlite_office: Office) -> None:
    with pytest.raises(ForbiddenError):
        sqlite_office.ask(service.get_job, actor(role=Role.AGENT), JobId("j-1"))


def test_a_pod_leads_to_the_jobs_that_have_or_had_it(office: Office) -> None:
    start = office.now
    gangs = [
        outside_gang(key, namespace=namespace, members=members, submitted_at=start - 10 + place)
        for place, (key, namespace, members) in enumerate(
            [
                ("old", "red", ("red/w-0/u-1", "red/w-1/u-2")),
                ("new", "red", ("red/w-1/u-3",)),
                ("wider", "red", ("red/w-10/u-4", "red/xw-1/u-5")),
                ("theirs", "blue", ("blue/w-1/u-6",)),
            ]
        )
    ]
    epoch = office.write(lambda tx: lease.acquire(tx, "h", 1e9, start))
    office.do(adopt, gangs, epoch=epoch, now=start, ids=office.ids)

    def names(pod: str, who: Actor = ROOT) -> list[str]:
        wanted = JobFilter(pod=pod)
        page = office.ask(service.list_jobs, who, wanted, cursor=None, limit=10)
        return [job.name for job in page.items]

    assert names("red/w-1") == ["new", "old"]
    assert names("red/w-0") == ["old"]
    assert names("red/w") == names("red/w-%") == names("red/w_1") == names("w-1") == []
    assert names("blue/w-1") == ["theirs"]
    assert names("blue/w-1", actor(RED)) == []


def test_a_pod_that_was_made_for_a_job_leads_to_it(office: Office) -> None:
    on = node("a")
    office.nodes(on)
    job = office.submit()
    office.bring_to(job.id, JobState.RUNNING, on)
    (attempt,) = office.ask(service.job_attempts, USER, job.id)

    def found(pod: str, who: Actor = USER) -> list[JobId]:
        wanted = JobFilter(pod=pod)
        return [each.id for each in office.ask(
            service.list_jobs, who, wanted, cursor=None, limit=10
        ).items]  # fmt: skip

    assert found(f"haversack-jobs/train-{attempt.id}-0") == [job.id]
    assert found(f"haversack-jobs/train-{attempt.id}") == []
    assert found(f"haversack-jobs/train-{attempt.id}-0", actor(RED)) == []


def test_a_pod_outside_every_job_is_explained_to_its_own_tenant() -> None:
    told = {("red", "p"): "waiting for 1 of 2 pods"}

    def ask(who: Actor, namespace: str) -> str:
        return service.explain_pod(
            who, namespace, "p", waits=lambda space, name: told.get((space, name), "")
        )

    assert ask(actor(RED), "red") == ask(ROOT, "red") == "waiting for 1 of 2 pods"
    for who, namespace in ((USER, "red"), (ROOT, "blue")):
        with pytest.raises(NotFoundError):
            ask(who, namespace)
    with pytest.raises(ForbiddenError):
        ask(actor(role=Role.AGENT), "red")
