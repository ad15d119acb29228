from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from support.clock import ManualClock
from support.kubernetes.fake_server import ADMIN, FakeApiServer
from support.kubernetes.objects import pod
from support.kubernetes.resources import PODS

from scheduler.execution.kubernetes.conditions import SCHEDULER_ERROR, Conditions
from scheduler.execution.kubernetes.pods import PodRef, Scheduled
from scheduler.execution.kubernetes.server import ApiServer, Document, RejectedError

WHY = "no node has 8 free GPUs: 3 of 5 are full"
Story = Callable[[FakeApiServer, Conditions, PodRef], Awaitable[None]]


def played(story: Story) -> None:
    async def play() -> None:
        async with FakeApiServer() as fake, ApiServer(fake.access) as server:
            made = fake.create(pod("p"))
            ref = PodRef("default", "p", made["metadata"]["uid"])
            await story(fake, Conditions(server, ManualClock()), ref)

    asyncio.run(play())


def scheduled(fake: FakeApiServer) -> Document:
    (one,) = fake.objects(PODS)
    found = [each for each in one["status"]["conditions"] if each["type"] == "PodScheduled"]
    assert len(found) == 1
    condition: Document = found[0]
    return condition


def test_a_pod_says_why_it_waits() -> None:
    async def story(fake: FakeApiServer, conditions: Conditions, ref: PodRef) -> None:
        assert await conditions.waits(ref, WHY, seen=None)
        told = scheduled(fake)
        assert (told["status"], told["reason"], told["message"]) == ("False", "Unschedulable", WHY)
        assert told["lastTransitionTime"].startswith("2027-01-15T08:00:00")

    played(story)


def test_nothing_is_written_twice() -> None:
    async def story(fake: FakeApiServer, conditions: Conditions, ref: PodRef) -> None:
        await conditions.waits(ref, WHY, seen=None)
        before = fake.version
        # The watch may not have shown our own write yet.
        assert not await conditions.waits(ref, WHY, seen=None)
        assert not await conditions.waits(ref, WHY, seen=Scheduled("False", "Unschedulable", "x"))
        assert fake.version == before

    played(story)


def test_after_a_restart_the_pod_itself_says_what_was_written() -> None:
    async def story(fake: FakeApiServer, conditions: Conditions, ref: PodRef) -> None:
        before = fake.version
        assert not await conditions.waits(ref, WHY, seen=Scheduled("False", "Unschedulable", WHY))
        assert fake.version == before

    played(story)


def test_a_new_reason_replaces_the_old_one_and_keeps_its_time() -> None:
    async def story(fake: FakeApiServer, conditions: Conditions, ref: PodRef) -> None:
        await conditions.waits(ref, WHY, seen=None)
        since = scheduled(fake)["lastTransitionTime"]
        seen = Scheduled("False", "Unschedulable", WHY)
        assert await conditions.waits(ref, "no rights", seen=seen, reason=SCHEDULER_ERROR)
        told = scheduled(fake)
        assert (told["reason"], told["message"]) == ("SchedulerError", "no rights")
        assert told["lastTransitionTime"] == since

    played(story)


def test_a_pod_that_is_gone_is_no_trouble() -> None:
    async def story(fake: FakeApiServer, conditions: Conditions, ref: PodRef) -> None:
        before = fake.version
        assert not await conditions.waits(replace(ref, name="q"), WHY, seen=None)
        other = replace(ref, uid="00000000-0000-0000-0000-000000000000")
        assert not await conditions.waits(other, WHY, seen=None)
        assert fake.version == before

    played(story)


def test_a_pod_that_was_forgotten_is_told_again() -> None:
    async def story(fake: FakeApiServer, conditions: Conditions, ref: PodRef) -> None:
        await conditions.waits(ref, WHY, seen=None)
        conditions.forget(ref)
        assert await conditions.waits(ref, WHY, seen=None)

    played(story)


def test_missing_rights_are_heard_of_and_nothing_counts_as_written() -> None:
    async def story(fake: FakeApiServer, conditions: Conditions, ref: PodRef) -> None:
        fake.deny(ADMIN, "patch", "pods/status")
        with pytest.raises(RejectedError):
            await conditions.waits(ref, WHY, seen=None)
        fake.allow(ADMIN)
        assert await conditions.waits(ref, WHY, seen=None)

    played(story)
