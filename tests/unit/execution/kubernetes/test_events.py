from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from support.clock import ManualClock
from support.kubernetes.fake_server import ADMIN, FakeApiServer
from support.kubernetes.faults import Fault
from support.kubernetes.resources import EVENTS

from scheduler.execution.kubernetes.events import Events
from scheduler.execution.kubernetes.pods import PodRef
from scheduler.execution.kubernetes.server import ApiServer

POD = PodRef("default", "train-0", "u-0")
Story = Callable[[FakeApiServer, Events, ManualClock], Awaitable[None]]


def played(story: Story) -> None:
    async def play() -> None:
        clock = ManualClock()
        async with FakeApiServer() as fake, ApiServer(fake.access) as server:
            await story(fake, Events(server, clock, "daemon-1" * 30), clock)

    asyncio.run(play())


def test_an_event_has_all_that_the_api_wants() -> None:
    async def story(fake: FakeApiServer, events: Events, clock: ManualClock) -> None:
        by = PodRef("default", "urgent", "u-1")
        await events.bound(POD, "n1")
        await events.preempted(POD, "for urgent", by=by)
        await events.waits(POD, "no room")
        found = {one["reason"]: one for one in fake.objects(EVENTS)}
        assert found.keys() == {"Scheduled", "Preempted", "FailedScheduling"}
        one = found["Scheduled"]
        assert one["note"] == "Successfully assigned default/train-0 to n1"
        assert (one["action"], one["type"]) == ("Binding", "Normal")
        assert one["eventTime"] == "2027-01-15T08:00:00.000000Z"
        assert one["regarding"]["uid"] == "u-0"
        assert len(one["reportingInstance"]) == 128
        assert found["Preempted"]["related"]["name"] == "urgent"
        assert found["FailedScheduling"]["type"] == "Warning"
        assert events.dropped == 0

    played(story)


def test_one_kind_of_event_a_minute_and_pod() -> None:
    async def story(fake: FakeApiServer, events: Events, clock: ManualClock) -> None:
        for turn in range(10):
            await events.waits(POD, f"no room {turn}")
            clock.advance(5)
        other = PodRef("default", "train-1", "u-9")
        await events.waits(other, "no room")
        assert sorted(one["note"] for one in fake.objects(EVENTS)) == ["no room", "no room 0"]
        clock.advance(20)
        await events.waits(POD, "no room 10")
        assert len(fake.objects(EVENTS)) == 3

    played(story)


def test_a_repeated_event_becomes_a_series() -> None:
    async def story(fake: FakeApiServer, events: Events, clock: ManualClock) -> None:
        for _ in range(5):
            await events.waits(POD, "no room")
            clock.advance(31)
        (one,) = fake.objects(EVENTS)
        assert one["series"]["count"] == 5
        assert one["series"]["lastObservedTime"] == "2027-01-15T08:02:04.000000Z"
        clock.advance(1800)
        await events.waits(POD, "no room")
        assert len(fake.objects(EVENTS)) == 2, "a series ends after half an hour"

    played(story)


def test_a_series_that_the_cluster_forgot_begins_anew() -> None:
    async def story(fake: FakeApiServer, events: Events, clock: ManualClock) -> None:
        await events.waits(POD, "no room")
        (one,) = fake.objects(EVENTS)
        path = EVENTS.path("default", one["metadata"]["name"], "")
        fake.operations.delete(fake._registry.target(path), {})
        clock.advance(61)
        await events.waits(POD, "no room")
        (again,) = fake.objects(EVENTS)
        assert "series" not in again

    played(story)


def test_notes_are_cut_by_bytes() -> None:
    async def story(fake: FakeApiServer, events: Events, clock: ManualClock) -> None:
        await events.waits(PodRef("default", "a" * 253, "u"), "ü" * 2000)
        (one,) = fake.objects(EVENTS)
        assert one["note"] == "ü" * 512
        assert len(one["metadata"]["name"]) <= 253

    played(story)


def test_an_event_that_is_not_taken_harms_nobody() -> None:
    async def story(fake: FakeApiServer, events: Events, clock: ManualClock) -> None:
        fake.faults.once(Fault.ERROR_BEFORE, verb="create", what="events")
        await events.waits(POD, "no room")
        assert events.dropped == 1
        fake.deny(ADMIN, "create", "events")
        clock.advance(61)
        await events.waits(POD, "still no room")
        assert events.dropped == 2
        fake.allow(ADMIN)
        clock.advance(61)
        await events.waits(POD, "still no room")
        assert [one["note"] for one in fake.objects(EVENTS)] == ["still no room"]

    played(story)


def test_what_comes_too_thick_is_dropped() -> None:
    async def story(fake: FakeApiServer, events: Events, clock: ManualClock) -> None:
        pods = [PodRef("default", f"p{place}", f"u{place}") for place in range(100)]
        await asyncio.gather(*(events.bound(pod, "n1") for pod in pods))
        assert len(fake.objects(EVENTS)) + events.dropped == 100
        assert events.dropped > 0

    played(story)
