"""What only the fake can do: faults on demand, forgetting, refusing. See the contract tests too."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import aiohttp
import orjson
import pytest
from support.clock import ManualClock
from support.kubernetes import objects
from support.kubernetes.client import Client
from support.kubernetes.fake_server import ADMIN, FakeApiServer, running_fake
from support.kubernetes.faults import (
    EVENT_FAULTS,
    REQUEST_FAULTS,
    STREAM_FAULTS,
    Deed,
    Fault,
    Faults,
)
from support.kubernetes.resources import BUILTIN, PODS

PATH = PODS.path("default")
BIND = Deed("create", "pods/binding", "somebody")


def _serve(act: Callable[[FakeApiServer, Client], Awaitable[None]], **options: object) -> None:
    async def acting() -> None:
        async with FakeApiServer(**options) as fake, Client(fake.access) as client:  # type: ignore[arg-type]
            await act(fake, client)

    asyncio.run(acting())


@pytest.mark.parametrize(
    ("fault", "status", "done"),
    [
        (Fault.BUSY, 429, False),
        (Fault.ERROR_BEFORE, 500, False),
        (Fault.ERROR_AFTER, 500, True),
        (Fault.UNAVAILABLE_BEFORE, 503, False),
        (Fault.UNAVAILABLE_AFTER, 503, True),
        (Fault.TIMED_OUT, 504, True),
        (Fault.CONFLICT, 409, False),
        (Fault.CUT_BEFORE, 0, False),
        (Fault.REPLY_LOST, 0, True),
        (Fault.DELAY_BEFORE, 201, True),
        (Fault.DELAY_AFTER, 201, True),
    ],
)
def test_a_fault_of_a_request(fault: Fault, status: int, *, done: bool) -> None:
    async def act(fake: FakeApiServer, client: Client) -> None:
        fake.create(objects.pod("a"))
        fake.faults.once(fault, what="pods/binding")
        path, body = PODS.path("default", "a", "binding"), objects.binding("a", "n1")
        if status:
            reply = await client.post(path, body)
            assert reply.status == status
            assert ("Retry-After" in reply.headers) == (fault is Fault.BUSY)
        else:
            with pytest.raises(aiohttp.ClientConnectionError):
                await client.post(path, body)
        (pod,) = fake.objects(PODS)
        assert ("nodeName" in pod["spec"]) == done
        assert fake.faults.counts == {fault: 1}
        assert fake.journal[-1].status == status
        # Once is once.
        assert (await client.post(path, body)).status == (409 if done else 201)

    _serve(act)


def test_every_fault_of_a_request_is_tried_above() -> None:
    (marks,) = test_a_fault_of_a_request.pytestmark  # type: ignore[attr-defined]
    assert [fault for fault, _, _ in marks.args[1]] == list(REQUEST_FAULTS)


@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        (Fault.EVENT_SWALLOWED, "bc"),
        (Fault.EVENT_TWICE, "aabc"),
        (Fault.EVENTS_SWAPPED, "bac"),
    ],
)
def test_a_fault_of_an_event(fault: Fault, seen: str) -> None:
    async def act(fake: FakeApiServer, client: Client) -> None:
        async with client.watch(PATH, resourceVersion=fake.version) as watch:
            fake.faults.once(fault, verb="watch")
            for name in "abc":
                fake.create(objects.pod(name))
            assert [name for _, name in await watch.take(len(seen))] == list(seen)
        assert fake.faults.counts == {fault: 1}

    _serve(act)


def test_an_event_is_replayed_after_a_later_one() -> None:
    async def act(fake: FakeApiServer, client: Client) -> None:
        async with client.watch(PATH, resourceVersion=fake.version) as watch:
            fake.faults.once(Fault.EVENT_REPLAYED, verb="watch", skip=1)
            for name in "abc":
                fake.create(objects.pod(name))
            assert [name for _, name in await watch.take(4)] == ["a", "b", "a", "c"]

    _serve(act)


def test_an_event_that_comes_late_comes_before_a_bookmark() -> None:
    async def act(fake: FakeApiServer, client: Client) -> None:
        query = {"resourceVersion": fake.version, "allowWatchBookmarks": True}
        async with client.watch(PATH, **query) as watch:
            fake.faults.once(Fault.EVENTS_SWAPPED)
            fake.create(objects.pod("a"))
            await asyncio.sleep(0.05)
            fake.bookmark()
            first, second = await watch.next(), await watch.next()
        assert first is not None
        assert second is not None
        assert [first["type"], second["type"]] == ["ADDED", "BOOKMARK"]
        assert second["object"]["metadata"]["resourceVersion"] == str(fake.version)

    _serve(act)


def test_a_watch_is_cut_within_a_line() -> None:
    async def act(fake: FakeApiServer, client: Client) -> None:
        fake.faults.once(Fault.WATCH_CUT, skip=1)
        async with client.watch(PATH, resourceVersion=fake.version) as watch:
            fake.create(objects.pod("a"))
            assert await watch.take(1) == [("ADDED", "a")]
            fake.create(objects.pod("b"))
            with pytest.raises((aiohttp.ClientError, orjson.JSONDecodeError)):
                await watch.next()

    _serve(act)


def test_a_watch_that_ends_early_loses_nothing() -> None:
    async def act(fake: FakeApiServer, client: Client) -> None:
        fake.faults.once(Fault.WATCH_ENDED)
        version = fake.version
        async with client.watch(PATH, resourceVersion=version) as watch:
            fake.create(objects.pod("a"))
            assert await watch.rest() == []
        async with client.watch(PATH, resourceVersion=version) as watch:
            assert await watch.take(1) == [("ADDED", "a")]

    _serve(act)


def test_a_silent_watch_says_nothing_not_even_its_end() -> None:
    async def act(fake: FakeApiServer, client: Client) -> None:
        fake.faults.once(Fault.WATCH_SILENT)
        query = {"resourceVersion": fake.version, "timeoutSeconds": 1, "allowWatchBookmarks": True}
        async with client.watch(PATH, **query) as watch:
            fake.create(objects.pod("a"))
            await asyncio.sleep(0.05)
            fake.create(objects.pod("b"))
            fake.bookmark()
            with pytest.raises(TimeoutError):
                await watch.next(within_s=1.2)

    _serve(act)


def test_stale_lists_are_of_the_past_and_watches_go_on_from_there() -> None:
    async def act(fake: FakeApiServer, client: Client) -> None:
        fake.faults.stale_by = 2
        for name in "abc":
            fake.create(objects.pod(name))
        fake.faults.once(Fault.LIST_STALE, verb="list")
        stale = (await client.get(PATH)).ok()
        assert [item["metadata"]["name"] for item in stale["items"]] == ["a"]
        assert int(stale["metadata"]["resourceVersion"]) == fake.version - 2
        fake.faults.once(Fault.LIST_STALE, verb="watch")
        query = {"resourceVersion": "", "resourceVersionMatch": "NotOlderThan"}
        async with client.watch(
            PATH, sendInitialEvents=True, allowWatchBookmarks=True, **query
        ) as watch:
            told = [await watch.next(), await watch.next()]
            assert [event["type"] for event in told if event] == ["ADDED", "BOOKMARK"]
            assert await watch.take(2) == [("ADDED", "b"), ("ADDED", "c")]

    _serve(act)


def test_an_old_version_comes_back_in_both_ways() -> None:
    async def act(fake: FakeApiServer, client: Client) -> None:
        fake.create(objects.pod("a"))
        fake.faults.once(Fault.WATCH_GONE)
        fake.faults.once(Fault.WATCH_EXPIRED)
        async with client.watch(PATH, resourceVersion=fake.version) as watch:
            assert watch.status == 410
        async with client.watch(PATH, resourceVersion=fake.version) as watch:
            assert watch.status == 200
            (event,) = await watch.rest()
        assert (event["type"], event["object"]["code"]) == ("ERROR", 410)

    _serve(act)


def test_what_is_compacted_is_gone() -> None:
    async def act(fake: FakeApiServer, client: Client) -> None:
        for name in "abc":
            fake.create(objects.pod(name))
        version = fake.version
        page = (await client.get(PATH, limit=1)).ok()
        fake.create(objects.pod("d"))
        fake.compact()
        rest = await client.get(PATH, limit=1, **{"continue": page["metadata"]["continue"]})
        assert (rest.status, rest.body["reason"]) == (410, "Expired")
        async with client.watch(PATH, resourceVersion=version) as watch:
            (event,) = await watch.rest()
        assert event["object"]["reason"] == "Expired"
        async with client.watch(PATH, resourceVersion=fake.version) as watch:
            fake.create(objects.pod("e"))
            assert await watch.take(1) == [("ADDED", "e")]

    _serve(act)


def test_watches_can_be_ended_and_cut() -> None:
    async def act(fake: FakeApiServer, client: Client) -> None:
        async with client.watch(PATH, resourceVersion=fake.version) as watch:
            assert fake.watching == 1
            fake.end_watches()
            assert await watch.next() is None
        async with client.watch(PATH, resourceVersion=fake.version) as watch:
            fake.cut_watches()
            with pytest.raises(aiohttp.ClientError):
                await watch.next()
        assert fake.watching == 0

    _serve(act)


def test_rights() -> None:
    async def act(fake: FakeApiServer, _: Client) -> None:
        user = "system:serviceaccount:haversack-system:haversack"
        async with Client(fake.access_as(user)) as client:
            fake.deny(user, "list", "pods")
            fake.deny(user, "*", "nodes")
            refused = await client.get(PATH)
            assert (refused.status, refused.body["reason"]) == (403, "Forbidden")
            assert f'User "{user}" cannot list resource "pods"' in refused.body["message"]
            assert (await client.get("/api/v1/nodes/n1")).status == 403
            assert (await client.get(PODS.path("default", "a"))).status == 404
            review = {"spec": {"resourceAttributes": {"verb": "list", "resource": "pods"}}}
            path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
            assert (await client.post(path, review)).ok()["status"] == {"allowed": False}
            path = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
            who = (await client.post(path, {})).ok()["status"]["userInfo"]["username"]
            assert who == user
            fake.allow(user)
            assert (await client.get(PATH)).status == 200
            fake.revoke(user)
            assert (await client.get(PATH)).status == 401
        assert {request.user for request in fake.journal} == {user, ""}

    _serve(act)


def test_what_is_served_can_be_asked() -> None:
    async def act(fake: FakeApiServer, client: Client) -> None:
        assert (await client.get("/readyz")).status == 200
        version = (await client.get("/version")).ok()
        assert (version["major"], version["minor"]) == ("1", "36")
        groups = (await client.get("/apis")).ok()["groups"]
        assert "scheduling.k8s.io" in {group["name"] for group in groups}
        assert (await client.get("/apis/scheduling.k8s.io/v1")).status == 200
        # A plain server has no native gangs.
        assert (await client.get("/apis/scheduling.k8s.io/v1alpha2")).status == 404

    _serve(act, resources=BUILTIN)


def test_times_come_from_the_clock() -> None:
    clock = ManualClock(1_800_000_000.0)

    async def act(fake: FakeApiServer, client: Client) -> None:
        made = fake.create(objects.pod("a", nodeName="n1"))
        assert made["metadata"]["creationTimestamp"] == "2027-01-15T08:00:00Z"
        clock.advance(60)
        leaving = (await client.delete(PODS.path("default", "a"))).ok()
        assert leaving["metadata"]["deletionTimestamp"] == "2027-01-15T08:01:30Z"

    _serve(act, clock=clock)


def test_long_lists_are_compressed() -> None:
    async def act(fake: FakeApiServer, client: Client) -> None:
        for number in range(300):
            fake.create(objects.pod(f"p{number}"))
        reply = await client.get(PATH)
        assert reply.headers["Content-Encoding"] in ("gzip", "deflate")
        assert len(reply.ok()["items"]) == 300

    _serve(act)


def test_a_fake_beside_a_test_that_blocks() -> None:
    with running_fake() as running:
        running.do(lambda fake: fake.create(objects.pod("a")))

        async def names() -> list[str]:
            async with Client(running.access) as client:
                items = (await client.get(PATH)).ok()["items"]
                return [item["metadata"]["name"] for item in items]

        assert asyncio.run(names()) == ["a"]


def test_chances_depend_on_the_seed_alone() -> None:
    def struck(seed: int) -> list[Fault | None]:
        faults = Faults(seed, dict.fromkeys(REQUEST_FAULTS, 0.02))
        return [faults.strikes(BIND, REQUEST_FAULTS) for _ in range(500)]

    assert struck(1) == struck(1)
    assert struck(1) != struck(2)
    assert len(set(struck(1))) > 5


def test_chances_have_a_limit_and_a_victim() -> None:
    faults = Faults(0, {Fault.BUSY: 1.0}, limit=3, victim="somebody")
    bystander = Deed("create", "pods/binding", ADMIN)
    assert faults.strikes(bystander, REQUEST_FAULTS) is None
    assert [faults.strikes(BIND, REQUEST_FAULTS) for _ in range(4)] == [Fault.BUSY] * 3 + [None]
    assert faults.strikes(BIND, EVENT_FAULTS) is None
    assert faults.total == 3


def test_orders_fit_and_skip() -> None:
    faults = Faults()
    faults.once(Fault.CONFLICT, verb="create", what="pods/binding", times=2, skip=1)
    other = Deed("patch", "pods/status", "somebody")
    assert faults.strikes(other, REQUEST_FAULTS) is None
    struck = [faults.strikes(BIND, REQUEST_FAULTS) for _ in range(4)]
    assert struck == [None, Fault.CONFLICT, Fault.CONFLICT, None]
    faults.once(Fault.WATCH_CUT)
    faults.stop()
    assert faults.strikes(other, STREAM_FAULTS) is None
