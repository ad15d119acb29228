"""Watching: on the fake as on a real kube-apiserver."""

from __future__ import annotations

import pytest
from support.kubernetes.ground import At, Ground

END = "k8s.io/initial-events-end"
WATCH_LIST = {
    "sendInitialEvents": True,
    "resourceVersionMatch": "NotOlderThan",
    "allowWatchBookmarks": True,
}


async def _version(at: At) -> str:
    listed = (await at.client.get(at.pods())).ok()
    return str(listed["metadata"]["resourceVersion"])


def test_a_watch_goes_on_where_a_list_ended(ground: Ground) -> None:
    async def act(at: At) -> None:
        await at.pod("before")
        async with at.client.watch(at.pods(), resourceVersion=await _version(at)) as watch:
            assert watch.status == 200
            await at.pod("a")
            await at.bind("a")
            await at.client.delete(at.pods("a"))
            await at.client.delete(at.pods("a"), {"gracePeriodSeconds": 0})
            seen = await watch.take(5)
        assert seen == [(kind, "a") for kind in ("ADDED", *["MODIFIED"] * 3, "DELETED")]

    ground.run(act)


def test_nothing_is_lost_between_two_watches(ground: Ground) -> None:
    async def act(at: At) -> None:
        version = await _version(at)
        names = [f"p{number}" for number in range(6)]
        async with at.client.watch(at.pods(), resourceVersion=version) as watch:
            await at.pod(names[0])
            event = await watch.next()
        assert event is not None
        for name in names[1:]:
            await at.pod(name)
        last = event["object"]["metadata"]["resourceVersion"]
        async with at.client.watch(at.pods(), resourceVersion=last) as watch:
            assert await watch.take(5) == [("ADDED", name) for name in names[1:]]

    ground.run(act)


@pytest.mark.parametrize("version", ["", "0"])
def test_a_watch_without_version_begins_with_what_there_is(ground: Ground, version: str) -> None:
    async def act(at: At) -> None:
        await at.pod("a")
        await at.pod("b")
        async with at.client.watch(at.pods(), resourceVersion=version) as watch:
            assert sorted(await watch.take(2)) == [("ADDED", "a"), ("ADDED", "b")]
            await at.pod("c")
            assert await watch.take(1) == [("ADDED", "c")]

    ground.run(act)


def test_watch_list(ground: Ground) -> None:
    async def act(at: At) -> None:
        await at.pod("a")
        await at.pod("b", labels={"x": "1"})
        async with at.client.watch(at.pods(), labelSelector="x", **WATCH_LIST) as watch:
            first, end = await watch.next(), await watch.next()
            assert first is not None
            assert (first["type"], first["object"]["metadata"]["name"]) == ("ADDED", "b")
            assert first["object"]["kind"] == "Pod"
            assert end is not None
            assert end["type"] == "BOOKMARK"
            assert end["object"]["metadata"]["annotations"] == {END: "true"}
            newest = int(first["object"]["metadata"]["resourceVersion"])
            assert int(end["object"]["metadata"]["resourceVersion"]) >= newest
            await at.client.patch(at.pods("a"), {"metadata": {"labels": {"x": "2"}}})
            assert await watch.take(1) == [("ADDED", "a")]

    ground.run(act)


def test_watch_list_without_bookmarks_never_says_that_it_is_complete(ground: Ground) -> None:
    async def act(at: At) -> None:
        await at.pod("a")
        query = {**WATCH_LIST, "allowWatchBookmarks": False, "timeoutSeconds": 2}
        async with at.client.watch(at.pods(), **query) as watch:
            assert [event["type"] for event in await watch.rest()] == ["ADDED"]

    ground.run(act)


def test_options_that_exclude_each_other(ground: Ground) -> None:
    async def act(at: At) -> None:
        for query in (
            {"sendInitialEvents": True, "allowWatchBookmarks": True},
            {"resourceVersionMatch": "NotOlderThan", "resourceVersion": "0"},
        ):
            async with at.client.watch(at.pods(), **query) as watch:
                assert watch.status == 422
        async with at.client.watch(at.pods(), resourceVersion="abc") as watch:
            assert watch.status == 500

    ground.run(act)


def test_a_version_that_is_forgotten(ground: Ground) -> None:
    async def act(at: At) -> None:
        await at.pod("a")
        async with at.client.watch(at.pods(), resourceVersion="1", timeoutSeconds=5) as watch:
            assert watch.status == 200
            (event,) = await watch.rest()
        assert event["type"] == "ERROR"
        assert (event["object"]["code"], event["object"]["reason"]) == (410, "Expired")

    ground.run(act)


def test_a_version_of_the_future_waits(ground: Ground) -> None:
    async def act(at: At) -> None:
        await at.pod("a")
        query = {"resourceVersion": 2**40, "timeoutSeconds": 1}
        async with at.client.watch(at.pods(), **query) as watch:
            assert watch.status == 200
            await at.pod("b")
            assert await watch.rest() == []

    ground.run(act)


def test_an_object_that_stops_matching_is_deleted(ground: Ground) -> None:
    async def act(at: At) -> None:
        version = await _version(at)
        query = {"fieldSelector": "spec.nodeName=", "resourceVersion": version}
        async with at.client.watch(at.pods(), **query) as watch:
            await at.pod("a")
            await at.bind("a", "n1")
            added, gone = await watch.next(), await watch.next()
        bound = (await at.client.get(at.pods("a"))).ok()
        assert added is not None
        assert gone is not None
        assert (added["type"], gone["type"]) == ("ADDED", "DELETED")
        assert "nodeName" not in gone["object"]["spec"]
        metadata = gone["object"]["metadata"]
        assert metadata["resourceVersion"] == bound["metadata"]["resourceVersion"]

    ground.run(act)


def test_a_finished_pod_leaves_the_usual_watch(ground: Ground) -> None:
    async def act(at: At) -> None:
        fields = "status.phase!=Succeeded,status.phase!=Failed"
        version = await _version(at)
        query = {"fieldSelector": fields, "resourceVersion": version}
        async with at.client.watch(at.pods(), **query) as watch:
            await at.pod("a")
            await at.bind("a")
            ended = {"status": {"phase": "Succeeded"}}
            (await at.client.patch(at.pods("a", "status"), ended)).ok()
            kinds = [kind for kind, _ in await watch.take(3)]
        assert kinds == ["ADDED", "MODIFIED", "DELETED"]

    ground.run(act)


def test_bookmarks_come_before_the_end(ground: Ground) -> None:
    async def act(at: At) -> None:
        query: dict[str, object] = {
            "resourceVersion": await _version(at),
            "fieldSelector": "metadata.name=nobody",
        }
        query |= {"allowWatchBookmarks": True, "timeoutSeconds": 6}
        async with at.client.watch(at.pods(), **query) as watch:
            other = await at.pod("a")
            events = await watch.rest()
        assert {event["type"] for event in events} == {"BOOKMARK"}
        version = other["metadata"]["resourceVersion"]
        assert int(events[-1]["object"]["metadata"]["resourceVersion"]) >= int(version)

    ground.run(act)


def test_one_object_is_watched_by_its_name(ground: Ground) -> None:
    async def act(at: At) -> None:
        await at.pod("a")
        await at.pod("b")
        query = {"fieldSelector": "metadata.name=b", "resourceVersion": "0"}
        async with at.client.watch(at.pods(), **query) as watch:
            await at.pod("c")
            await at.bind("b")
            assert await watch.take(2) == [("ADDED", "b"), ("MODIFIED", "b")]

    ground.run(act)
