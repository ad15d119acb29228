from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from support.kubernetes.fake_server import ADMIN, FakeApiServer
from support.kubernetes.faults import Fault
from support.kubernetes.objects import binding, pod
from support.kubernetes.resources import LEASES, PODS, POLICIES, POLICY_BINDINGS
from typing_extensions import override

from scheduler.errors import FencedError
from scheduler.execution.kubernetes.fence import (
    LEASE,
    STALE,
    Fence,
    lease_manifest,
    pins_name,
    policy_manifest,
    policy_name,
)
from scheduler.execution.kubernetes.labels import EPOCH
from scheduler.execution.kubernetes.server import ApiServer, Document, RejectedError


class Naps:
    """Counts waits instead of waiting."""

    def __init__(self) -> None:
        self.total_s = 0.0

    async def __call__(self, seconds: float) -> None:
        self.total_s += seconds


def played(story: Callable[[FakeApiServer, ApiServer], Awaitable[None]]) -> None:
    async def play() -> None:
        async with FakeApiServer() as fake, ApiServer(fake.access) as server:
            await story(fake, server)

    asyncio.run(play())


def fence(server: ApiServer, holder: str = "first", **more: str) -> Fence:
    return Fence(server, holder=holder, user=ADMIN, sleep=Naps(), **more)


def test_what_is_missing_is_created_once() -> None:
    async def story(fake: FakeApiServer, server: ApiServer) -> None:
        assert await fence(server).ensure() == ()
        made = [one["metadata"]["name"] for one in fake.objects(POLICIES)]
        assert made == [policy_name(), pins_name()]
        before = fake.version
        assert await fence(server).ensure() == ()
        assert fake.version == before
        assert len(fake.objects(POLICY_BINDINGS)) == 2

    played(story)


def test_what_our_rights_do_not_cover_is_told() -> None:
    async def story(fake: FakeApiServer, _: ApiServer) -> None:
        access = fake.access_as("poor")
        fake.deny("poor", "*", POLICIES.plural)
        async with ApiServer(access) as server:
            troubles = await Fence(server, holder="h", user="poor").ensure()
        assert len(troubles) == 2
        assert policy_name() in troubles[0]
        assert pins_name() in troubles[1]
        assert all("poor" in trouble for trouble in troubles)

    played(story)


def test_an_epoch_is_above_the_store_s_and_the_cluster_s() -> None:
    async def story(_: FakeApiServer, server: ApiServer) -> None:
        ours = fence(server)
        await ours.ensure()
        assert await ours.read_epoch() == 0
        assert await ours.next_epoch(4) == 5
        await ours.publish(5)
        assert await ours.read_epoch() == 5
        # The database was restored from a backup and knows only epoch 2.
        assert await ours.next_epoch(2) == 6

    played(story)


def test_epochs_only_rise() -> None:
    async def story(fake: FakeApiServer, server: ApiServer) -> None:
        first, second = fence(server), fence(server, "second")
        await first.ensure()
        await first.publish(1)
        await first.publish(1)
        with pytest.raises(FencedError, match="first"):
            await second.publish(1)
        await second.publish(3)
        with pytest.raises(FencedError, match="second"):
            await first.publish(2)
        (lease,) = fake.objects(LEASES)
        assert lease["spec"]["leaseTransitions"] == 3
        assert lease["spec"]["holderIdentity"] == "second"

    played(story)


def test_of_two_leaders_that_publish_at_once_the_higher_epoch_stays() -> None:
    async def story(_: FakeApiServer, server: ApiServer) -> None:
        fences = [fence(server, f"h{epoch}") for epoch in range(1, 7)]
        await fences[0].ensure()
        ends = await asyncio.gather(
            *(one.publish(epoch) for epoch, one in enumerate(fences, start=1)),
            return_exceptions=True,
        )
        assert await fences[0].read_epoch() == 6
        assert ends[5] is None
        assert all(end is None or isinstance(end, FencedError) for end in ends)

    played(story)


def test_a_write_in_between_is_noticed() -> None:
    async def story(fake: FakeApiServer, server: ApiServer) -> None:
        ours = fence(server)
        await ours.ensure()
        await ours.publish(1)
        fake.faults.once(Fault.CONFLICT, verb="update", what=LEASES.plural, times=2)
        await ours.publish(2)
        assert await ours.read_epoch() == 2

    played(story)


def test_the_proof_sees_the_fence_hold() -> None:
    async def story(_: FakeApiServer, server: ApiServer) -> None:
        ours = fence(server)
        await ours.ensure()
        await ours.publish(1)
        assert (await ours.prove(1)).holds
        await fence(server, "second").publish(2)
        late = await ours.prove(1)
        assert not late.holds
        assert "stale leader epoch" in late.why

    played(story)


def test_the_proof_sees_that_there_is_no_fence() -> None:
    async def story(fake: FakeApiServer, server: ApiServer) -> None:
        await server.post(
            "/api/v1/namespaces",
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "haversack-system"}},
        )
        naps = Naps()
        ours = Fence(server, holder="first", user=ADMIN, sleep=naps)
        await ours.publish(1)
        proof = await ours.prove(1)
        assert not proof.holds
        assert "nothing refuses" in proof.why
        assert 5 < naps.total_s < 20, "a policy gets time to come into force"
        # A policy for somebody else does not concern us.
        stranger = Fence(server, holder="first", user="system:stranger", sleep=naps)
        await stranger.ensure()
        assert not (await ours.prove(1)).holds
        assert not [each for each in fake.journal if each.what == "pods/binding" if not each.status]

    played(story)


def test_rights_that_are_missing_for_binding_are_no_fence() -> None:
    async def story(fake: FakeApiServer, server: ApiServer) -> None:
        ours = fence(server)
        await ours.ensure()
        await ours.publish(1)
        fake.deny(ADMIN, "create", "pods/binding")
        proof = await ours.prove(1)
        assert not proof.holds
        assert "pods/binding" in proof.why

    played(story)


def test_an_installation_elsewhere_has_its_own_lease_and_policy() -> None:
    async def story(fake: FakeApiServer, server: ApiServer) -> None:
        for namespace in ("haversack-system", "gpu-lab"):
            one = fence(server, namespace=namespace)
            await one.ensure()
            await one.publish(1)
        assert {one["metadata"]["namespace"] for one in fake.objects(LEASES)} == {
            "haversack-system",
            "gpu-lab",
        }
        assert len(fake.objects(POLICIES)) == 4

    played(story)


def test_without_a_lease_nobody_is_held_up() -> None:
    async def story(fake: FakeApiServer, server: ApiServer) -> None:
        await fence(server).ensure()
        gated = pod("p", gates=["haversack.dev/placement"], scheduler="default-scheduler")
        fake.create(gated)
        fake.create(pod("free"))
        here = binding("free", "n")
        await server.post(PODS.path("default", "free", "binding"), here)
        label = {"metadata": {"labels": {"theirs": "yes"}}}
        await server.patch(PODS.path("default", "p"), label)
        await fence(server).publish(3)
        with pytest.raises(RejectedError, match=STALE):
            await server.patch(PODS.path("default", "p"), {"metadata": {"labels": {"more": "x"}}})
        right = {"metadata": {"annotations": {EPOCH: "3"}}}
        await server.patch(PODS.path("default", "p"), right)
        await server.patch(PODS.path("default", "p"), {"spec": {"schedulingGates": None}})
        wrong = {"metadata": {"annotations": {EPOCH: "9"}}}
        await server.patch(PODS.path("default", "p"), wrong)  # no gate of ours: no pin

    played(story)


async def we_lead() -> None:
    """We do."""


async def we_were_overtaken() -> None:
    raise FencedError("epoch 1 no longer leads")


async def make_bare_lease(server: ApiServer) -> None:
    """The Lease as `kubectl apply` makes it from deploy/kubernetes/base."""
    bare = lease_manifest(0, "")
    del bare["spec"]
    await server.post(LEASES.path("haversack-system"), bare)


@pytest.mark.parametrize("applied_again", [False, True])
def test_a_lease_that_was_deleted_is_published_again(*, applied_again: bool) -> None:
    async def story(_: FakeApiServer, server: ApiServer) -> None:
        ours = fence(server)
        await ours.ensure()
        await ours.publish(3)
        await server.delete(LEASES.path("haversack-system", LEASE))
        if applied_again:
            await make_bare_lease(server)
        assert await ours.keep(3, we_lead)
        assert await ours.read_epoch() == 3
        assert (await ours.prove(3)).holds

    played(story)


def test_keeping_a_lease_that_is_right_costs_one_look() -> None:
    async def story(fake: FakeApiServer, server: ApiServer) -> None:
        ours = fence(server)
        await ours.ensure()
        await ours.publish(3)
        fake.journal.clear()
        assert not await ours.keep(3, we_were_overtaken), "nobody asks the store for nothing"
        assert [(each.verb, each.what) for each in fake.journal] == [("get", LEASES.plural)]

    played(story)


@pytest.mark.parametrize("applied_again", [False, True])
def test_a_stale_leader_does_not_publish_its_epoch_again(*, applied_again: bool) -> None:
    async def story(fake: FakeApiServer, server: ApiServer) -> None:
        stale, leader = fence(server), fence(server, "second")
        await stale.ensure()
        await stale.publish(1)
        await leader.publish(2)
        with pytest.raises(FencedError, match="second"):
            await stale.keep(1, we_lead)
        await server.delete(LEASES.path("haversack-system", LEASE))
        if applied_again:
            await make_bare_lease(server)
        before = fake.version
        with pytest.raises(FencedError, match="no longer leads"):
            await stale.keep(1, we_were_overtaken)
        assert fake.version == before
        assert await leader.keep(2, we_lead)
        assert await leader.read_epoch() == 2

    played(story)


def test_a_lease_that_somebody_makes_meanwhile_is_not_written_over_unread() -> None:
    class Slow(Fence):
        """Another leader publishes between its look and its write."""

        @override
        async def _lease(self) -> Document | None:
            lease = await super()._lease()
            if lease is None:
                await fence(self._server, "second").publish(2)
            return lease

    async def story(_: FakeApiServer, server: ApiServer) -> None:
        slow = Slow(server, holder="first", user=ADMIN, sleep=Naps())
        await slow.ensure()
        with pytest.raises(FencedError, match="second"):
            await slow.publish(1)
        assert await slow.read_epoch() == 2

    played(story)


def test_manifests_name_what_they_guard() -> None:
    assert lease_manifest(3, "h")["metadata"]["name"] == LEASE
    policy = policy_manifest("o'brien\\x")["spec"]
    assert policy["failurePolicy"] == "Fail"
    condition = policy["matchConditions"][0]["expression"]
    assert condition == "request.userInfo.username == 'o\\'brien\\\\x'"
