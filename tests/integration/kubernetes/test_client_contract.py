"""Our client's reader, binder, fence and reports: on the fake as on a real kube-apiserver."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

from support.kubernetes import objects
from support.kubernetes.client import Client, Json
from support.kubernetes.ground import At, Ground
from support.kubernetes.resources import EVENTS, NODES, POLICIES, POLICY_BINDINGS

from scheduler.clock import SystemClock
from scheduler.execution.kubernetes.binder import Binder, Binding, BindOutcome, GangOutcome
from scheduler.execution.kubernetes.conditions import Conditions
from scheduler.execution.kubernetes.events import Events
from scheduler.execution.kubernetes.evict import Evictor, EvictOutcome
from scheduler.execution.kubernetes.fence import Fence, pins_name, policy_name
from scheduler.execution.kubernetes.labels import ATTEMPT, EPOCH, JOB
from scheduler.execution.kubernetes.pods import Pod, PodRef, pod_of
from scheduler.execution.kubernetes.reader import Pace, Reader
from scheduler.execution.kubernetes.server import ApiServer

_SOON_S = 30.0


class Books:
    """What a reader told."""

    def __init__(self) -> None:
        self.pods: dict[str, Pod] = {}
        self._news = asyncio.Event()

    def replaced(self, objects: Mapping[str, Pod]) -> None:
        self.pods = dict(objects)
        self._news.set()

    def changed(self, seen: Pod) -> None:
        self.pods[str(seen.ref)] = seen
        self._news.set()

    def deleted(self, key: str) -> None:
        del self.pods[key]
        self._news.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(_SOON_S):
            while not holds():
                self._news.clear()
                await self._news.wait()

    def names(self) -> dict[str, str]:
        return {pod.ref.name: pod.node_name for pod in self.pods.values()}


def ref_of(raw: Json) -> PodRef:
    metadata = raw["metadata"]
    return PodRef(metadata["namespace"], metadata["name"], metadata["uid"])


def binding(pod: PodRef, node: str = "n1", *, epoch: int = 1, attempt: str = "a1") -> Binding:
    return Binding(pod, node, {JOB: "j1", ATTEMPT: attempt, EPOCH: str(epoch)})


async def reading(
    at: At, server: ApiServer, act: Callable[[Reader[Pod], Books], Awaitable[None]], pace: Pace
) -> None:
    """Run a reader of the test's namespace while something happens."""
    books = Books()
    reader: Reader[Pod] = Reader(server, at.pods(), pod_of, books, pace=pace)
    task = asyncio.create_task(reader.run())
    try:
        await asyncio.wait_for(reader.synced.wait(), _SOON_S)
        await act(reader, books)
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def test_a_reader_follows_a_pod_s_life(ground: Ground) -> None:
    async def act(at: At) -> None:
        await at.pod("there")

        async def follow(reader: Reader[Pod], books: Books) -> None:
            assert books.names() == {"there": ""}
            for place in range(3):
                await at.pod(f"new-{place}")
            await at.bind("new-0", "n7")
            await at.client.delete(at.pods("there"), {"gracePeriodSeconds": 0})
            await books.until(lambda: books.names() == {"new-0": "n7", "new-1": "", "new-2": ""})
            assert reader.trouble == ""

        async with ApiServer(ground.access) as server:
            await reading(at, server, follow, Pace(watch_s=1))

    ground.run(act)


def test_a_reader_by_pages_sees_the_same(ground: Ground) -> None:
    async def act(at: At) -> None:
        for place in range(7):
            await at.pod(f"p{place}")
        async with ApiServer(ground.access) as server:
            books = Books()
            reader: Reader[Pod] = Reader(server, at.pods(), pod_of, books, pace=Pace(page=3))
            reader._streams_lists = False
            await reader._list()
            assert books.names() == {f"p{place}": "" for place in range(7)}

    ground.run(act)


def test_a_reader_whose_version_expired_lists_afresh(ground: Ground) -> None:
    async def act(at: At) -> None:
        await at.pod("stays")
        goes = await at.pod("goes")

        async with ApiServer(ground.access) as server:
            books = Books()
            reader: Reader[Pod] = Reader(server, at.pods(), pod_of, books)
            await reader._list()
            await at.client.delete(at.pods("goes"), {"gracePeriodSeconds": 0})
            ground.compact()
            reader._version, reader._version_number = "1", 1
            task = asyncio.create_task(reader.run())
            await books.until(lambda: str(ref_of(goes)) not in books.pods)
            task.cancel()
            assert books.names() == {"stays": ""}

    ground.run(act)


def test_bindings_and_what_becomes_of_them(ground: Ground) -> None:
    async def act(at: At) -> None:
        async with ApiServer(ground.access) as server:
            evictor = Evictor(server, SystemClock())
            binder = Binder(server, evictor, fence=None)

            async def end(wanted: Binding) -> BindOutcome:
                return (await binder.bind(wanted)).outcome

            bound = ref_of(await at.pod("bound"))
            assert await end(binding(bound)) is BindOutcome.BOUND
            assert await end(binding(bound, epoch=9)) is BindOutcome.ALREADY_OURS
            assert await end(binding(bound, "n2")) is BindOutcome.TAKEN
            assert await end(binding(bound, attempt="a2")) is BindOutcome.TAKEN
            nobody = "00000000-0000-0000-0000-000000000000"
            other = PodRef(at.namespace, "bound", nobody)
            assert await end(binding(other)) is BindOutcome.GONE
            absent = PodRef(at.namespace, "absent", nobody)
            assert await end(binding(absent)) is BindOutcome.GONE
            gated = ref_of(await at.pod("gated", gates=["example.com/wait"]))
            assert await end(binding(gated)) is BindOutcome.GATED
            leaving = ref_of(await at.pod("leaving", finalizers=["example.com/hold"]))
            assert (await evictor.delete(leaving)).outcome is EvictOutcome.GOING
            assert await end(binding(leaving)) is BindOutcome.LEAVING
            raw = (await at.client.get(at.pods("bound"))).ok()
            assert raw["metadata"]["annotations"] == {JOB: "j1", ATTEMPT: "a1", EPOCH: "1"}

    ground.run(act)


def test_gangs_are_bound_whole_or_not_at_all(ground: Ground) -> None:
    async def act(at: At) -> None:
        async with ApiServer(ground.access) as server:
            binder = Binder(server, Evictor(server, SystemClock()), fence=None)
            whole = [ref_of(await at.pod(f"w{place}")) for place in range(8)]
            for _ in range(2):
                result = await binder.bind_gang([binding(pod) for pod in whole])
                assert result.outcome is GangOutcome.WHOLE
            torn = [ref_of(await at.pod(f"t{place}")) for place in range(8)]
            await at.client.delete(at.pods("t5"), {"gracePeriodSeconds": 0})
            result = await binder.bind_gang([binding(pod) for pod in torn])
            assert result.outcome is GangOutcome.LOST
            assert f"{at.namespace}/t5" in result.message
            for raw in (await at.client.get(at.pods())).ok()["items"]:
                if raw["metadata"]["name"].startswith("t"):
                    going = "deletionTimestamp" in raw["metadata"]
                    assert going or not raw["spec"].get("nodeName")

    ground.run(act)


def test_the_fence_turns_a_stale_leader_away(ground: Ground) -> None:
    async def act(at: At) -> None:
        namespace = at.namespace
        async with ApiServer(ground.access) as server:
            first = Fence(server, holder="first", namespace=namespace)
            second = Fence(server, holder="second", namespace=namespace)
            try:
                assert await first.ensure() == ()
                epoch = await first.next_epoch(0)
                await first.publish(epoch)
                proof = await first.prove(epoch)
                assert proof.holds, proof.why
                evictor = Evictor(server, SystemClock())
                old = Binder(server, evictor, fence=first)
                new = Binder(server, evictor, fence=second)
                pods = [ref_of(await at.pod(f"p{place}")) for place in range(3)]
                done = await old.bind(binding(pods[0], epoch=epoch))
                assert done.outcome is BindOutcome.BOUND
                later = await second.next_epoch(0)
                await second.publish(later)
                assert (await second.prove(later)).holds
                late = await old.bind(binding(pods[1], epoch=epoch))
                assert late.outcome is BindOutcome.REFUSED_STALE
                again = await new.bind(binding(pods[0], epoch=later))
                assert again.outcome is BindOutcome.ALREADY_OURS
                gang = await new.bind_gang([binding(pod, epoch=later) for pod in pods])
                assert gang.outcome is GangOutcome.WHOLE
            finally:
                # It holds for the whole cluster, not for this test's namespace alone.
                for name in (policy_name(namespace), pins_name(namespace)):
                    for resource in (POLICY_BINDINGS, POLICIES):
                        await at.client.delete(resource.path(name=name))
                await _unfenced(at.client, at)

    ground.run(act)


async def _unfenced(client: Client, at: At) -> None:
    """Wait until bindings without an epoch pass again."""
    await at.pod("witness")
    async with asyncio.timeout(_SOON_S):
        while await at.bind("witness") != 201:  # noqa: ASYNC110 - a policy tells nobody
            await asyncio.sleep(0.1)


def test_what_pods_are_told_and_how_they_end(ground: Ground) -> None:
    async def act(at: At) -> None:
        async with ApiServer(ground.access) as server:
            clock = SystemClock()
            conditions, events = Conditions(server, clock), Events(server, clock, "test")
            raw = await at.pod("p")
            pod = ref_of(raw)
            assert await conditions.waits(pod, "no room", seen=None)
            seen = pod_of((await at.client.get(at.pods("p"))).ok()).scheduled
            assert seen is not None
            assert not await Conditions(server, clock).waits(pod, "no room", seen=seen)
            other = PodRef(pod.namespace, pod.name, "00000000-0000-0000-0000-000000000000")
            assert not await conditions.waits(other, "no room", seen=None)
            await events.waits(pod, "no room" * 300)
            await events.bound(pod, "n1")
            found = (await at.client.get(at.path(EVENTS))).ok()["items"]
            assert {one["reason"] for one in found} == {"FailedScheduling", "Scheduled"}
            assert events.dropped == 0
            evictor = Evictor(server, clock)
            assert (await evictor.preempt(other, "x")).outcome is EvictOutcome.GONE
            await at.bind("p")
            assert (await evictor.preempt(pod, "for another")).outcome is EvictOutcome.GOING
            ending = pod_of((await at.client.get(at.pods("p"))).ok())
            assert ending.deleting
            assert ending.disruption == "PreemptionByScheduler"

    ground.run(act)


def test_a_node_is_read_as_well_as_a_pod(ground: Ground) -> None:
    async def act(at: At) -> None:
        name = await at.node(gpus=4)
        seen: list[str] = []

        class Names:
            """Keeps names."""

            def replaced(self, objects: Mapping[str, str]) -> None:
                seen.extend(objects.values())

            def changed(self, seen: str) -> None:
                raise AssertionError(seen)

            def deleted(self, key: str) -> None:
                raise AssertionError(key)

        async with ApiServer(ground.access) as server:
            reader: Reader[str] = Reader(
                server, NODES.path(), lambda raw: str(raw["metadata"]["name"]), Names()
            )
            await reader._list()
        assert name in seen
        assert objects.node(name, gpus=4)["metadata"]["name"] == name

    ground.run(act)
