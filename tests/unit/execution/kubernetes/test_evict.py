from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from support.clock import ManualClock
from support.kubernetes.fake_server import ADMIN, FakeApiServer
from support.kubernetes.faults import Fault
from support.kubernetes.objects import binding, pod
from support.kubernetes.resources import PODS

from scheduler.execution.kubernetes.evict import Evictor, EvictOutcome, delete_options
from scheduler.execution.kubernetes.pods import PodRef
from scheduler.execution.kubernetes.server import (
    ApiServer,
    Document,
    OutcomeUnknownError,
    RejectedError,
)

PATH = "/api/v1/namespaces/default/pods"
Story = Callable[[FakeApiServer, ApiServer, Evictor, PodRef], Awaitable[None]]


def played(story: Story) -> None:
    """Run a story about one pod that runs on a node, with a label and 30 s of grace."""

    async def play() -> None:
        async with FakeApiServer() as fake, ApiServer(fake.access) as server:
            made = fake.create(pod("p", labels={"app": "x"}))
            await server.post(f"{PATH}/p/binding", binding("p", "n1"))
            await server.patch(f"{PATH}/p/status", {"status": {"phase": "Running"}})
            ref = PodRef("default", "p", made["metadata"]["uid"])
            await story(fake, server, Evictor(server, ManualClock()), ref)

    asyncio.run(play())


def found(fake: FakeApiServer) -> Document:
    (one,) = fake.objects(PODS)
    return one


def test_a_victim_is_told_why_before_it_is_deleted() -> None:
    async def story(fake: FakeApiServer, _: ApiServer, evictor: Evictor, ref: PodRef) -> None:
        eviction = await evictor.preempt(ref, "job 7 needs its GPUs", grace_s=12.3)
        assert eviction.outcome is EvictOutcome.GOING
        victim = found(fake)
        assert victim["metadata"]["deletionGracePeriodSeconds"] == 13
        (told,) = [
            one for one in victim["status"]["conditions"] if one["type"] == "DisruptionTarget"
        ]
        assert (told["status"], told["reason"]) == ("True", "PreemptionByScheduler")
        assert told["message"] == "job 7 needs its GPUs"
        deeds = [(each.verb, each.what) for each in fake.journal][-2:]
        assert deeds == [("patch", "pods/status"), ("delete", "pods")]

    played(story)


def test_its_own_grace_is_kept_unless_another_is_given() -> None:
    async def story(fake: FakeApiServer, _: ApiServer, evictor: Evictor, ref: PodRef) -> None:
        await evictor.delete(ref)
        assert found(fake)["metadata"]["deletionGracePeriodSeconds"] == 30

    played(story)


@pytest.mark.parametrize("grace_s", [0.0, 0.2])
def test_no_pod_is_taken_off_the_books_while_it_may_run(grace_s: float) -> None:
    ref = PodRef("default", "p", "u")
    assert delete_options(ref, grace_s)["gracePeriodSeconds"] == 1


def test_another_pod_of_the_same_name_is_spared() -> None:
    async def story(fake: FakeApiServer, _: ApiServer, evictor: Evictor, ref: PodRef) -> None:
        other = replace(ref, uid="00000000-0000-0000-0000-000000000000")
        for eviction in (
            await evictor.preempt(other, "x"),
            await evictor.delete(other),
        ):
            assert eviction.outcome is EvictOutcome.GONE
        survivor = found(fake)
        assert "deletionTimestamp" not in survivor["metadata"]
        kinds = {one["type"] for one in survivor["status"]["conditions"]}
        assert "DisruptionTarget" not in kinds

    played(story)


def test_what_is_gone_is_gone() -> None:
    async def story(fake: FakeApiServer, server: ApiServer, evictor: Evictor, ref: PodRef) -> None:
        await server.delete(f"{PATH}/p", {"gracePeriodSeconds": 0})
        assert (await evictor.preempt(ref, "x")).outcome is EvictOutcome.GONE

    played(story)


def test_a_pod_that_changed_is_left_alone_where_that_matters() -> None:
    async def story(fake: FakeApiServer, server: ApiServer, evictor: Evictor, ref: PodRef) -> None:
        version = found(fake)["metadata"]["resourceVersion"]
        await server.patch(f"{PATH}/p", {"metadata": {"labels": {"touched": "yes"}}})
        assert await evictor.mark(ref, "x", version=version) == ""
        eviction = await evictor.delete(ref, version=version)
        assert eviction.outcome is EvictOutcome.CHANGED
        assert "deletionTimestamp" not in found(fake)["metadata"]
        now = await evictor.mark(ref, "x", version=found(fake)["metadata"]["resourceVersion"])
        assert now == found(fake)["metadata"]["resourceVersion"]
        assert (await evictor.delete(ref, version=now)).outcome is EvictOutcome.GOING

    played(story)


def test_a_lost_reply_is_unknown_and_repeating_settles_it() -> None:
    async def story(fake: FakeApiServer, _: ApiServer, evictor: Evictor, ref: PodRef) -> None:
        fake.faults.once(Fault.REPLY_LOST, verb="delete", times=2)  # aiohttp itself repeats one
        with pytest.raises(OutcomeUnknownError):
            await evictor.delete(ref)
        assert (await evictor.delete(ref)).outcome is EvictOutcome.GOING

    played(story)


def test_missing_rights_are_the_caller_s_to_hear_of() -> None:
    async def story(fake: FakeApiServer, _: ApiServer, evictor: Evictor, ref: PodRef) -> None:
        fake.deny(ADMIN, "delete", "pods")
        with pytest.raises(RejectedError):
            await evictor.delete(ref)

    played(story)
