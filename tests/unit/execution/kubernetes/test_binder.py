from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
from support.clock import ManualClock
from support.kubernetes.fake_server import ADMIN, FakeApiServer
from support.kubernetes.faults import Fault, Faults
from support.kubernetes.objects import fence as other_policy
from support.kubernetes.objects import pod
from support.kubernetes.resources import LEASES, PODS
from typing_extensions import override

from scheduler.execution.kubernetes.access import Access
from scheduler.execution.kubernetes.binder import (
    Binder,
    Binding,
    BindOutcome,
    GangOutcome,
)
from scheduler.execution.kubernetes.evict import Evictor
from scheduler.execution.kubernetes.fence import LEASE, Fence, LostLeaseError
from scheduler.execution.kubernetes.labels import ATTEMPT, EPOCH, GPUS, JOB
from scheduler.execution.kubernetes.pods import PodRef
from scheduler.execution.kubernetes.server import ApiServer, Document, Limits

PATH = "/api/v1/namespaces/default/pods"


async def _no_sleep(_: float) -> None:
    await asyncio.sleep(0)


class Ground:
    """A fake cluster, fenced at epoch 1, and the binder of its leader."""

    def __init__(self, fake: FakeApiServer, server: ApiServer) -> None:
        self.fake, self.server = fake, server
        self.fence = Fence(server, holder="first", user=ADMIN, sleep=_no_sleep)
        self.binder = self.another_binder(self.fence)

    def another_binder(self, fence: Fence | None) -> Binder:
        evictor = Evictor(self.server, ManualClock())
        return Binder(self.server, evictor, fence=fence, in_flight=4, sleep=_no_sleep)

    def pod(self, name: str, **more: object) -> PodRef:
        made = self.fake.create(pod(name, **more))  # type: ignore[arg-type] # fields by name
        return PodRef("default", name, made["metadata"]["uid"])

    def gang(self, size: int) -> list[PodRef]:
        return [self.pod(f"g{place}") for place in range(size)]

    def found(self, name: str) -> Document:
        named = [one for one in self.fake.objects(PODS) if one["metadata"]["name"] == name]
        return named[0] if named else {}

    def nodes(self) -> dict[str, str]:
        return {
            one["metadata"]["name"]: one["spec"].get("nodeName", "")
            for one in self.fake.objects(PODS)
            if "deletionTimestamp" not in one["metadata"]
        }

    def binds_sent(self) -> int:
        return sum(each.what == "pods/binding" for each in self.fake.journal)

    async def remove(self, ref: PodRef) -> None:
        await self.server.delete(f"{PATH}/{ref.name}", {"gracePeriodSeconds": 0})

    async def run_pod(self, name: str) -> None:
        await self.server.patch(f"{PATH}/{name}/status", {"status": {"phase": "Running"}})


def to(ref: PodRef, node: str = "n1", *, attempt: str = "a1", epoch: int = 1) -> Binding:
    marks = {JOB: "j1", ATTEMPT: attempt, GPUS: "gpu-0,gpu-1", EPOCH: str(epoch)}
    return Binding(ref, node, marks)


def all_to(refs: Sequence[PodRef], **more: int) -> list[Binding]:
    return [to(ref, f"n{place}", **more) for place, ref in enumerate(refs)]  # type: ignore[arg-type]


def played(
    story: Callable[[Ground], Awaitable[None]],
    *,
    limits: Limits | None = None,
    faults: Faults | None = None,
) -> None:
    async def play() -> None:
        async with AsyncExitStack() as stack:
            fake = await stack.enter_async_context(FakeApiServer(faults=faults))
            server = await stack.enter_async_context(
                ApiServer(fake.access, limits, sleep=_no_sleep)
            )
            ground = Ground(fake, server)
            await ground.fence.ensure()
            await ground.fence.publish(1)
            fake.journal.clear()
            await story(ground)

    asyncio.run(play())


def test_a_binding_puts_node_and_marks_on_the_pod_at_once() -> None:
    async def story(ground: Ground) -> None:
        ref = ground.pod("p", annotations={"theirs": "kept"})
        result = await ground.binder.bind(to(ref))
        assert result.outcome is BindOutcome.BOUND
        found = ground.found("p")
        assert found["spec"]["nodeName"] == "n1"
        assert found["metadata"]["annotations"] == {**to(ref).annotations, "theirs": "kept"}
        assert ground.binds_sent() == 1

    played(story)


def test_repeating_a_binding_finds_it_done_also_under_a_later_leader() -> None:
    async def story(ground: Ground) -> None:
        ref = ground.pod("p")
        await ground.binder.bind(to(ref))
        assert (await ground.binder.bind(to(ref))).outcome is BindOutcome.ALREADY_OURS
        later = Fence(ground.server, holder="second", user=ADMIN)
        await later.publish(2)
        binder = ground.another_binder(later)
        assert (await binder.bind(to(ref, epoch=2))).outcome is BindOutcome.ALREADY_OURS

    played(story)


@pytest.mark.parametrize("change", [{"node": "n2"}, {"attempt": "a2"}])
def test_a_pod_bound_otherwise_is_taken(change: dict[str, str]) -> None:
    async def story(ground: Ground) -> None:
        ref = ground.pod("p")
        await ground.binder.bind(to(ref))
        result = await ground.binder.bind(to(ref, **change))  # type: ignore[arg-type]
        assert result.outcome is BindOutcome.TAKEN
        assert "n1" in result.message

    played(story)


def test_a_pod_that_is_not_this_one_is_gone() -> None:
    async def story(ground: Ground) -> None:
        ref = ground.pod("p")
        again = replace(ref, uid="00000000-0000-0000-0000-000000000000")
        assert (await ground.binder.bind(to(again))).outcome is BindOutcome.GONE
        assert (await ground.binder.bind(to(replace(ref, name="q")))).outcome is BindOutcome.GONE
        assert ground.nodes() == {"p": ""}

    played(story)


def test_a_pod_that_must_not_be_bound_says_why() -> None:
    async def story(ground: Ground) -> None:
        gated = ground.pod("gated", gates=["example.com/wait"])
        result = await ground.binder.bind(to(gated))
        assert result.outcome is BindOutcome.GATED
        assert "example.com/wait" in result.message
        leaving = ground.pod("leaving", finalizers=["example.com/hold"])
        await ground.remove(leaving)
        assert (await ground.binder.bind(to(leaving))).outcome is BindOutcome.LEAVING
        assert ground.nodes() == {"gated": ""}

    played(story)


@pytest.mark.parametrize("fault", [Fault.REPLY_LOST, Fault.ERROR_AFTER, Fault.UNAVAILABLE_AFTER])
def test_a_reply_lost_after_the_deed_is_found_out(fault: Fault) -> None:
    async def story(ground: Ground) -> None:
        ref = ground.pod("p")
        ground.fake.faults.once(fault, what="pods/binding")
        assert (await ground.binder.bind(to(ref))).outcome is BindOutcome.ALREADY_OURS
        assert ground.binds_sent() == 1

    played(story)


@pytest.mark.parametrize("fault", [Fault.CUT_BEFORE, Fault.ERROR_BEFORE, Fault.CONFLICT])
def test_what_was_not_done_is_tried_again(fault: Fault) -> None:
    async def story(ground: Ground) -> None:
        ref = ground.pod("p")
        ground.fake.faults.once(fault, what="pods/binding")
        assert (await ground.binder.bind(to(ref))).outcome is BindOutcome.BOUND
        assert ground.binds_sent() == 2

    played(story)


def test_a_server_that_never_tells_leaves_it_unknown() -> None:
    async def story(ground: Ground) -> None:
        ref = ground.pod("p")
        ground.fake.faults.once(Fault.CUT_BEFORE, what="pods/binding", times=100)
        assert (await ground.binder.bind(to(ref))).outcome is BindOutcome.UNKNOWN
        ground.fake.faults.stop()
        ground.fake.faults.once(Fault.REPLY_LOST, what="pods/binding")
        ground.fake.faults.once(Fault.ERROR_BEFORE, verb="get", what="pods", times=100)
        assert (await ground.binder.bind(to(ref))).outcome is BindOutcome.UNKNOWN
        ground.fake.faults.stop()
        assert (await ground.binder.bind(to(ref))).outcome is BindOutcome.ALREADY_OURS

    played(story)


def test_where_nobody_listens_nothing_is_done() -> None:
    async def play() -> None:
        async with ApiServer(Access("http://127.0.0.1:9"), sleep=_no_sleep) as server:
            evictor = Evictor(server, ManualClock())
            binder = Binder(server, evictor, fence=None, sleep=_no_sleep)
            result = await binder.bind(to(PodRef("default", "p", "u")))
            assert result.outcome is BindOutcome.NOT_DONE

    asyncio.run(play())


def test_a_server_that_stays_busy_did_nothing() -> None:
    async def story(ground: Ground) -> None:
        ref = ground.pod("p")
        ground.fake.faults.once(Fault.BUSY, what="pods/binding", times=1000)
        assert (await ground.binder.bind(to(ref))).outcome is BindOutcome.NOT_DONE
        assert ground.nodes() == {"p": ""}

    played(story)


def test_the_server_turns_a_stale_leader_away() -> None:
    async def story(ground: Ground) -> None:
        ref = ground.pod("p")
        await Fence(ground.server, holder="second", user=ADMIN).publish(2)
        result = await ground.binder.bind(to(ref, epoch=1))
        assert result.outcome is BindOutcome.REFUSED_STALE
        assert "stale leader epoch" in result.message
        assert ground.nodes() == {"p": ""}

    played(story)


def test_a_server_that_has_not_seen_our_epoch_yet_does_not_depose_us() -> None:
    """The policy's cache may lag behind the Lease that we have just written."""

    class LaggingFence(Fence):
        """The cluster's Lease already shows our epoch, which the policy does not know yet."""

        @override
        async def read_epoch(self) -> int:
            await self.publish(2)
            return await super().read_epoch()

    async def story(ground: Ground) -> None:
        ref = ground.pod("p")
        binder = ground.another_binder(LaggingFence(ground.server, holder="next", user=ADMIN))
        assert (await binder.bind(to(ref, epoch=2))).outcome is BindOutcome.BOUND

    played(story)


def test_a_lease_that_is_gone_deposes_nobody() -> None:
    async def story(ground: Ground) -> None:
        ref = ground.pod("p")
        await ground.server.delete(LEASES.path("haversack-system", LEASE))
        assert (await ground.binder.bind(to(ref))).outcome is BindOutcome.BOUND

    played(story)


def test_rights_that_are_missing_are_no_fault_of_the_pod() -> None:
    async def story(ground: Ground) -> None:
        refs = ground.gang(3)
        await ground.binder.bind(all_to(refs)[0])
        ground.fake.deny(ADMIN, "create", "pods/binding")
        result = await ground.binder.bind_gang(all_to(refs))
        assert result.outcome is GangOutcome.UNSETTLED
        assert "pods/binding" in result.message
        ground.fake.allow(ADMIN)
        assert (await ground.binder.bind_gang(all_to(refs))).outcome is GangOutcome.WHOLE

    played(story)


def test_a_policy_of_others_refuses_the_pod() -> None:
    async def story(ground: Ground) -> None:
        ref = ground.pod("p")
        for manifest in other_policy("theirs", "default", "no-such-lease"):
            ground.fake.create(manifest)
        result = await ground.binder.bind(to(ref))
        assert result.outcome is BindOutcome.REFUSED
        assert "theirs" in result.message
        assert (await ground.binder.bind_gang([to(ref)])).outcome is GangOutcome.LOST
        assert ground.nodes() == {"p": ""}

    played(story)


def test_a_gang_is_bound_whole_and_again_without_harm() -> None:
    async def story(ground: Ground) -> None:
        refs = ground.gang(9)
        result = await ground.binder.bind_gang(all_to(refs))
        assert result.outcome is GangOutcome.WHOLE
        assert result.message == ""
        assert ground.nodes() == {f"g{place}": f"n{place}" for place in range(9)}
        await ground.run_pod("g3")
        again = await ground.binder.bind_gang(all_to(refs))
        assert again.outcome is GangOutcome.WHOLE
        assert {each.outcome for each in again.members} == {BindOutcome.ALREADY_OURS}

    played(story)


def test_half_a_gang_is_completed_by_repeating() -> None:
    async def story(ground: Ground) -> None:
        refs = ground.gang(6)
        for binding in all_to(refs)[:3]:
            await ground.binder.bind(binding)
        result = await ground.binder.bind_gang(all_to(refs))
        assert result.outcome is GangOutcome.WHOLE
        assert [each.outcome for each in result.members].count(BindOutcome.BOUND) == 3

    played(story)


@pytest.mark.parametrize("lost", range(6))
def test_a_gang_that_loses_a_member_leaves_none_bound(lost: int) -> None:
    async def story(ground: Ground) -> None:
        refs = ground.gang(6)
        await ground.remove(refs[lost])
        result = await ground.binder.bind_gang(all_to(refs))
        assert result.outcome is GangOutcome.LOST
        assert f"default/g{lost}" in result.message
        assert set(ground.nodes().values()) <= {""}, "whoever is left waits, unbound"
        assert {ref.name for ref in result.undone}.isdisjoint(ground.nodes())
        for ref in result.undone:
            conditions = ground.found(ref.name)["status"]["conditions"]
            told = {one["type"]: one["reason"] for one in conditions if "reason" in one}
            assert told["DisruptionTarget"] == "PreemptionByScheduler"

    played(story)


def test_members_that_run_from_an_earlier_try_are_left_to_the_caller() -> None:
    async def story(ground: Ground) -> None:
        refs = ground.gang(3)
        await ground.binder.bind_gang(all_to(refs[:2]))
        await ground.run_pod("g0")
        await ground.remove(refs[2])
        bindings = all_to(refs)
        result = await ground.binder.bind_gang(bindings)
        assert result.outcome is GangOutcome.LOST
        assert result.kept == (refs[0],)
        assert result.undone == (refs[1],)

    played(story)


def test_a_gang_of_which_nothing_is_lost_can_be_repeated() -> None:
    async def story(ground: Ground) -> None:
        refs = ground.gang(4)
        ground.fake.faults.once(Fault.CUT_BEFORE, what="pods/binding", times=6)
        result = await ground.binder.bind_gang(all_to(refs))
        outcomes = {each.outcome for each in result.members}
        if result.outcome is GangOutcome.UNSETTLED:
            assert BindOutcome.UNKNOWN in outcomes
        ground.fake.faults.stop()
        assert (await ground.binder.bind_gang(all_to(refs))).outcome is GangOutcome.WHOLE

    played(story)


def test_a_stale_leader_undoes_nothing() -> None:
    async def story(ground: Ground) -> None:
        refs = ground.gang(4)
        await ground.binder.bind_gang(all_to(refs[:2]))
        await Fence(ground.server, holder="second", user=ADMIN).publish(2)
        await ground.remove(refs[3])
        result = await ground.binder.bind_gang(all_to(refs))
        assert result.outcome is GangOutcome.STALE
        assert result.undone == ()
        assert ground.nodes() == {"g0": "n0", "g1": "n1", "g2": ""}

    played(story)


def test_a_leader_deposed_before_it_undoes_touches_nothing() -> None:
    class Deposed(Fence):
        """Loses the lead between its last binding and the first deletion."""

        @override
        async def read_epoch(self) -> int:
            return 2

    async def story(ground: Ground) -> None:
        refs = ground.gang(3)
        binder = ground.another_binder(Deposed(ground.server, holder="first", user=ADMIN))
        await ground.remove(refs[2])
        result = await binder.bind_gang(all_to(refs))
        assert result.outcome is GangOutcome.STALE
        assert ground.nodes() == {"g0": "n0", "g1": "n1"}

    played(story)


@pytest.mark.parametrize("stale", [False, True])
def test_nobody_undoes_anything_while_the_lease_is_gone(*, stale: bool) -> None:
    """Whether a later leader had published its epoch there cannot be told any more."""

    async def story(ground: Ground) -> None:
        refs = ground.gang(3)
        if stale:
            await Fence(ground.server, holder="second", user=ADMIN).publish(2)
        await ground.server.delete(LEASES.path("haversack-system", LEASE))
        await ground.remove(refs[2])
        result = await ground.binder.bind_gang(all_to(refs))
        assert result.outcome is GangOutcome.UNSETTLED
        assert ground.nodes() == {"g0": "n0", "g1": "n1"}
        with pytest.raises(LostLeaseError):
            await ground.binder.leads(1)
        if stale:
            await Fence(ground.server, holder="second", user=ADMIN).publish(2)
            assert not await ground.binder.leads(1)
        else:
            await ground.fence.publish(1)
            assert await ground.binder.leads(1)
            result = await ground.binder.bind_gang(all_to(refs))
            assert (result.outcome, ground.nodes()) == (GangOutcome.LOST, {})

    played(story)


def test_faults_while_undoing_leave_it_unsettled_not_half_told() -> None:
    async def story(ground: Ground) -> None:
        refs = ground.gang(3)
        await ground.remove(refs[2])
        ground.fake.faults.once(Fault.ERROR_BEFORE, verb="delete", times=1000)
        result = await ground.binder.bind_gang(all_to(refs))
        assert result.outcome is GangOutcome.UNSETTLED
        ground.fake.faults.stop()
        again = await ground.binder.bind_gang(all_to(refs))
        assert again.outcome is GangOutcome.LOST
        assert ground.nodes() == {}

    played(story)


def test_gangs_under_faults_end_whole_or_not_at_all() -> None:
    chances = dict.fromkeys(
        (
            Fault.BUSY,
            Fault.ERROR_BEFORE,
            Fault.ERROR_AFTER,
            Fault.UNAVAILABLE_AFTER,
            Fault.CUT_BEFORE,
            Fault.REPLY_LOST,
            Fault.CONFLICT,
        ),
        0.04,
    )

    async def story(ground: Ground) -> None:
        for turn in range(12):
            refs = [ground.pod(f"t{turn}-{place}") for place in range(5)]
            doomed = turn % 3 == 0
            if doomed:
                ground.fake.operations.delete(
                    ground.fake._registry.target(f"{PATH}/{refs[4].name}"),
                    {"gracePeriodSeconds": 0},
                )
            result = await ground.binder.bind_gang(all_to(refs))
            while result.outcome is GangOutcome.UNSETTLED:
                result = await ground.binder.bind_gang(all_to(refs))
            assert result.outcome is (GangOutcome.LOST if doomed else GangOutcome.WHOLE)
            nodes = ground.nodes()
            bound = sum(bool(nodes.get(ref.name)) for ref in refs)
            assert bound == (0 if doomed else 5)
        assert ground.fake.faults.total > 20

    faults = Faults(seed=3, chances=chances, retry_after_s=0)
    faults._limit = 0  # the fence is set up in peace

    async def with_faults(ground: Ground) -> None:
        faults._limit = None
        await story(ground)

    played(with_faults, faults=faults)
