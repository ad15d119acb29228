from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import pytest
from support.clock import ManualClock
from support.kubernetes.fake_server import ADMIN, FakeApiServer
from support.kubernetes.faults import Fault
from support.kubernetes.objects import pod
from support.kubernetes.resources import PODS

from scheduler.errors import FencedError
from scheduler.execution.kubernetes import labels
from scheduler.execution.kubernetes.binder import Binder, Binding, BindOutcome, GangOutcome
from scheduler.execution.kubernetes.evict import Evictor
from scheduler.execution.kubernetes.fence import Fence
from scheduler.execution.kubernetes.pinning import Pinner, pin_patch
from scheduler.execution.kubernetes.pods import Pod, PodRef, pod_of
from scheduler.execution.kubernetes.server import ApiServer, Document

PATH = "/api/v1/namespaces/default/pods"
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"


async def _no_sleep(_: float) -> None:
    await asyncio.sleep(0)


class Ground:
    """A fake cluster, fenced at epoch 1, and the pinner of its leader."""

    def __init__(self, fake: FakeApiServer, server: ApiServer) -> None:
        self.fake, self.server = fake, server
        self.told: list[tuple[str, str, str]] = []
        self.fence = Fence(server, holder="first", user=ADMIN, sleep=_no_sleep)
        self.pinner = self.another_pinner(self.fence)

    def another_pinner(self, fence: Fence) -> Pinner:
        evictor = Evictor(self.server, ManualClock())
        binder = Binder(self.server, evictor, fence=fence, in_flight=1, sleep=_no_sleep)
        return Pinner(
            self.server,
            binder,
            evictor,
            told=lambda ref, node, path: self.told.append((ref.name, node, path)),
        )

    def pod(self, name: str, **more: Any) -> PodRef:
        fields = {"scheduler": "default-scheduler", "gates": [labels.PLACEMENT_GATE], **more}
        made = self.fake.create(pod(name, **fields))
        return PodRef("default", name, made["metadata"]["uid"])

    def gang(self, size: int) -> list[PodRef]:
        return [self.pod(f"g{place}") for place in range(size)]

    def raw(self, name: str) -> Document:
        (found,) = [p for p in self.fake.objects(PODS) if p["metadata"]["name"] == name]
        return found

    def shown(self, name: str) -> Pod:
        return pod_of(self.raw(name))

    def names(self) -> list[str]:
        return [each["metadata"]["name"] for each in self.fake.objects(PODS)]

    def gated(self) -> list[str]:
        return [name for name in self.names() if self.shown(name).gates]

    def writes(self) -> int:
        return sum(each.what == "pods" and each.verb == "patch" for each in self.fake.journal)

    async def remove(self, ref: PodRef) -> None:
        await self.server.delete(f"{PATH}/{ref.name}", {"gracePeriodSeconds": 0})


def to(ref: PodRef, node: str = "n1", *, attempt: str = "a1", epoch: int = 1) -> Binding:
    marks = {
        labels.MARKED: ref.uid,
        labels.ATTEMPT: attempt,
        labels.EPOCH: str(epoch),
        labels.PATH: "gate-and-pin: kube-scheduler judges it too",
    }
    return Binding(ref, node, marks)


def all_to(refs: Sequence[PodRef], *, epoch: int = 1) -> list[Binding]:
    return [to(ref, f"n{place}", epoch=epoch) for place, ref in enumerate(refs)]


def terms_of(raw: Document) -> list[Document]:
    found: list[Document] = raw["spec"]["affinity"]["nodeAffinity"][REQUIRED]["nodeSelectorTerms"]
    return found


def pin(node: str) -> Document:
    return {"key": "metadata.name", "operator": "In", "values": [node]}


def played(story: Callable[[Ground], Awaitable[None]]) -> None:
    async def play() -> None:
        async with AsyncExitStack() as stack:
            fake = await stack.enter_async_context(FakeApiServer())
            server = await stack.enter_async_context(ApiServer(fake.access, sleep=_no_sleep))
            ground = Ground(fake, server)
            await ground.fence.ensure()
            await ground.fence.publish(1)
            fake.journal.clear()
            await story(ground)

    asyncio.run(play())


def test_a_gang_is_pinned_and_released_with_its_marks_and_told() -> None:
    async def story(ground: Ground) -> None:
        bindings = all_to(ground.gang(2))
        result = await ground.pinner.pin_gang(bindings)
        assert result.outcome is GangOutcome.WHOLE
        for place, binding in enumerate(bindings):
            raw = ground.raw(f"g{place}")
            assert terms_of(raw) == [{"matchFields": [pin(f"n{place}")]}]
            assert "schedulingGates" not in raw["spec"]
            assert "nodeName" not in raw["spec"]
            assert raw["metadata"]["annotations"] == dict(binding.annotations)
        assert sorted(ground.told) == [
            ("g0", "n0", "gate-and-pin: kube-scheduler judges it too"),
            ("g1", "n1", "gate-and-pin: kube-scheduler judges it too"),
        ]
        ground.told.clear()
        again = await ground.pinner.pin_gang(bindings)
        assert {each.outcome for each in again.members} == {BindOutcome.ALREADY_OURS}
        assert (again.outcome, ground.told) == (GangOutcome.WHOLE, [])

    played(story)


def test_a_pod_alone_is_pinned_and_released_in_one_write() -> None:
    async def story(ground: Ground) -> None:
        ref = ground.pod("p")
        assert (await ground.pinner.pin_gang([to(ref)])).outcome is GangOutcome.WHOLE
        assert (ground.gated(), ground.writes(), len(ground.told)) == ([], 1, 1)
        assert (await ground.pinner.pin_gang([to(ref)])).outcome is GangOutcome.WHOLE
        assert len(ground.told) == 1
        other = ground.pod("q")
        await ground.pinner.pin(to(other))
        assert ground.gated() == ["q"]
        assert (await ground.pinner.pin_gang([to(other)])).outcome is GangOutcome.WHOLE
        assert ground.gated() == []

    played(story)


def test_every_alternative_gets_the_pin_and_keeps_what_it_said() -> None:
    expression = {"key": "disk", "operator": "In", "values": ["fast"]}
    elsewhere = {"key": "metadata.name", "operator": "NotIn", "values": ["n9"]}
    terms = [{"matchExpressions": [expression]}, {"matchFields": [elsewhere]}]

    async def story(ground: Ground) -> None:
        affinity = {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": terms}}}
        ref = ground.pod("p", affinity=affinity)
        assert (await ground.pinner.pin_gang([to(ref)])).outcome is GangOutcome.WHOLE
        assert terms_of(ground.raw("p")) == [
            {"matchExpressions": [expression], "matchFields": [pin("n1")]},
            {"matchFields": [elsewhere, pin("n1")]},
        ]

    played(story)


def test_a_term_that_no_node_meets_stays_so() -> None:
    terms: list[Document] = [{}, {"matchFields": [pin("n1")]}]
    affinity = {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": terms}}}
    raw = {"metadata": {"resourceVersion": "7"}, "spec": {"affinity": affinity}}
    patch = pin_patch(raw, to(PodRef("default", "p", "u")))
    assert terms_of(patch) == terms


def test_nobody_is_released_before_all_are_pinned() -> None:
    async def story(ground: Ground) -> None:
        refs = ground.gang(3)
        await ground.remove(refs[2])
        result = await ground.pinner.pin_gang(all_to(refs))
        assert result.outcome is GangOutcome.LOST
        assert {ref.name for ref in result.undone} == {"g0", "g1"}
        assert ground.names() == []
        assert ground.told == []

    played(story)


def test_a_member_lost_after_some_were_released_takes_all_with_it() -> None:
    async def story(ground: Ground) -> None:
        refs = ground.gang(2)
        bindings = all_to(refs)
        for binding in bindings:
            assert (await ground.pinner.pin(binding)).outcome is BindOutcome.BOUND
        assert (await ground.pinner.release(bindings[0])).outcome is BindOutcome.BOUND
        assert ground.gated() == ["g1"]
        await ground.remove(refs[1])
        result = await ground.pinner.pin_gang(bindings)
        assert (result.outcome, ground.names()) == (GangOutcome.LOST, [])
        assert "g1" in result.message

    played(story)


def test_a_later_leader_completes_what_was_begun() -> None:
    async def story(ground: Ground) -> None:
        refs = ground.gang(2)
        for binding in all_to(refs):
            await ground.pinner.pin(binding)
        later = Fence(ground.server, holder="second", user=ADMIN)
        await later.publish(2)
        result = await ground.another_pinner(later).pin_gang(all_to(refs, epoch=2))
        assert (result.outcome, ground.gated()) == (GangOutcome.WHOLE, [])
        assert {ground.shown(each).annotation(labels.EPOCH) for each in ("g0", "g1")} == {"2"}

    played(story)


@pytest.mark.parametrize("pinned_before", [False, True])
def test_a_stale_leader_neither_pins_nor_releases(*, pinned_before: bool) -> None:
    async def story(ground: Ground) -> None:
        refs = ground.gang(2)
        if pinned_before:
            for binding in all_to(refs):
                await ground.pinner.pin(binding)
        await Fence(ground.server, holder="second", user=ADMIN).publish(2)
        result = await ground.pinner.pin_gang(all_to(refs))
        assert result.outcome is GangOutcome.STALE
        assert ground.gated() == ["g0", "g1"]
        assert ("affinity" in ground.raw("g0")["spec"]) is pinned_before

    played(story)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"gates": []}, "its gate was taken away"),
        ({"gates": ["example.org/other", labels.PLACEMENT_GATE]}, "example.org/other"),
        (
            {
                "affinity": {
                    "nodeAffinity": {
                        REQUIRED: {"nodeSelectorTerms": [{"matchFields": [pin("n7")]}]}
                    }
                }
            },
            "it is pinned to n7",
        ),
    ],
    ids=["ungated", "held by others", "pinned elsewhere"],
)
def test_a_pod_that_cannot_be_pinned_loses_its_gang(change: dict[str, Any], said: str) -> None:
    async def story(ground: Ground) -> None:
        ref = ground.pod("p", **change)
        result = await ground.pinner.pin_gang([to(ref)])
        assert result.outcome is GangOutcome.LOST
        assert said in result.message
        assert ground.names() == ["p"]
        assert ground.writes() == 0

    played(story)


def test_another_pod_of_that_name_is_left_alone() -> None:
    async def story(ground: Ground) -> None:
        ref = replace(ground.pod("p"), uid="00000000-0000-0000-0000-000000000000")
        result = await ground.pinner.pin_gang([to(ref)])
        assert result.outcome is GangOutcome.LOST
        assert ground.gated() == ["p"]

    played(story)


@pytest.mark.parametrize(
    "fault",
    [
        Fault.BUSY,
        Fault.ERROR_BEFORE,
        Fault.ERROR_AFTER,
        Fault.CUT_BEFORE,
        Fault.REPLY_LOST,
        Fault.CONFLICT,
        Fault.TIMED_OUT,
    ],
)
def test_whatever_happens_to_answers_it_is_done_once(fault: Fault) -> None:
    async def story(ground: Ground) -> None:
        refs = ground.gang(2)
        for skip in (0, 2):  # of the writes that pin, and of those that release
            ground.fake.faults.once(fault, verb="patch", what="pods", skip=skip)
        result = await ground.pinner.pin_gang(all_to(refs))
        assert (result.outcome, ground.gated()) == (GangOutcome.WHOLE, [])

    played(story)


def test_an_attempt_is_taken_back_as_it_was_seen_or_not_at_all() -> None:
    async def story(ground: Ground) -> None:
        bindings = all_to(ground.gang(2))
        await ground.pinner.pin_gang(bindings)
        seen = [ground.shown(name) for name in ("g0", "g1")]
        body = {"status": {"message": "changed"}}
        await ground.server.patch(f"{PATH}/g1/status", body)
        assert not await ground.pinner.take_back(seen, "refused", 1)
        assert "g1" in ground.names()
        left = [ground.shown(name) for name in ground.names()]
        assert await ground.pinner.take_back(left, "refused", 1)
        assert ground.names() == []

    played(story)


def test_who_leads_no_more_takes_nothing_back() -> None:
    async def story(ground: Ground) -> None:
        await ground.pinner.pin_gang(all_to(ground.gang(1)))
        await Fence(ground.server, holder="second", user=ADMIN).publish(2)
        with pytest.raises(FencedError):
            await ground.pinner.take_back([ground.shown("g0")], "refused", 1)
        assert ground.names() == ["g0"]

    played(story)
