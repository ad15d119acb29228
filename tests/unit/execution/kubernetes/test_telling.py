from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from support.clock import ManualClock
from support.kubernetes.fake_server import FakeApiServer
from support.kubernetes.faults import Fault
from support.kubernetes.objects import binding, pod
from support.kubernetes.resources import EVENTS, PODS

from scheduler.execution.kubernetes.conditions import Conditions
from scheduler.execution.kubernetes.events import Events
from scheduler.execution.kubernetes.pods import Pod, pod_of
from scheduler.execution.kubernetes.server import ApiServer
from scheduler.execution.kubernetes.telling import Teller


class Stage:
    """A teller whose picture of the pods is taken anew when a test says so."""

    def __init__(self, fake: FakeApiServer, server: ApiServer) -> None:
        self.fake, self.server = fake, server
        clock = ManualClock()
        self.shown: dict[str, Pod] = {}
        self.teller = Teller(Conditions(server, clock), Events(server, clock, "me"), self._current)

    def _current(self, key: str) -> Pod | None:
        return self.shown.get(key)

    def show(self) -> None:
        pods = [pod_of(each) for each in self.fake.objects(PODS)]
        self.shown = {str(each.ref): each for each in pods}

    def make(self, name: str, **fields: Any) -> Pod:
        self.fake.create(pod(name, **fields))
        self.show()
        return self.pod(name)

    def pod(self, name: str) -> Pod:
        return next(each for each in self.shown.values() if each.ref.name == name)

    def says(self, name: str) -> str:
        self.show()
        scheduled = self.pod(name).scheduled
        return scheduled.message if scheduled is not None else ""

    def writes(self) -> int:
        return sum(each.what == "pods/status" for each in self.fake.journal)

    async def until(self, so: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not so():  # noqa: ASYNC110 - what is waited for is a state, told by nobody
                await asyncio.sleep(0.005)


def played(story: Callable[[Stage], Awaitable[None]]) -> None:
    async def play() -> None:
        async with FakeApiServer() as fake, ApiServer(fake.access) as server:
            stage = Stage(fake, server)
            task = asyncio.create_task(stage.teller.run())
            await story(stage)
            assert not task.done()
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    asyncio.run(play())


def test_a_pod_is_told_once_and_again_when_the_reason_changes() -> None:
    async def story(stage: Stage) -> None:
        waiting = stage.make("p")
        stage.teller.wait_for([(waiting, "no room")])
        await stage.until(lambda: stage.says("p") == "no room")
        for _ in range(3):
            stage.teller.wait_for([(stage.pod("p"), "no room")])
            await asyncio.sleep(0.02)
        assert stage.writes() == 1
        stage.teller.wait_for([(stage.pod("p"), "less room")])
        await stage.until(lambda: stage.says("p") == "less room")

    played(story)


def test_what_changes_back_before_its_turn_is_not_told() -> None:
    async def story(stage: Stage) -> None:
        stage.teller.wait_for([(stage.make("p"), "first")])
        await stage.until(lambda: stage.says("p") == "first")
        stage.teller.wait_for([(stage.pod("p"), "second")])
        stage.teller.wait_for([(stage.pod("p"), "first")])
        await asyncio.sleep(0.05)
        assert stage.says("p") == "first"
        assert stage.writes() == 1

    played(story)


def test_who_was_bound_meanwhile_is_not_said_to_wait() -> None:
    async def story(stage: Stage) -> None:
        waiting = stage.make("p")
        await stage.server.post(f"{PODS.path('default', 'p')}/binding", binding("p", "n1"))
        stage.teller.wait_for([(waiting, "no room")])  # the picture lags behind
        await stage.until(lambda: stage.writes() == 1)
        await asyncio.sleep(0.02)
        stage.show()
        scheduled = stage.pod("p").scheduled
        assert scheduled is not None
        assert scheduled.status == "True"
        stage.teller.wait_for([(stage.pod("p"), "no room")])
        await asyncio.sleep(0.02)
        assert stage.writes() == 1

    played(story)


def test_neither_a_fault_nor_a_pod_that_is_gone_ends_the_telling() -> None:
    async def story(stage: Stage) -> None:
        stage.fake.faults.once(Fault.ERROR_BEFORE, what="pods/status", times=1)
        first, second = stage.make("p"), stage.make("q")
        stage.teller.wait_for([(first, "no room")])
        await stage.until(lambda: stage.fake.faults.total == 1)
        await stage.server.delete(PODS.path("default", "q"), {"gracePeriodSeconds": 0})
        stage.teller.wait_for([(second, "no room"), (first, "\ud800 is no text")])
        await asyncio.sleep(0.05)
        stage.teller.wait_for([(first, "no room")])
        await stage.until(lambda: stage.says("p") == "no room")

    played(story)


def test_a_gang_that_is_still_coming_is_told_of_once_it_stays_as_it_is() -> None:
    async def story(stage: Stage) -> None:
        waiting = stage.make("p")
        for number in range(1, 4):
            stage.teller.gather([(waiting, f"waiting for {number} of 4 pods")])
            await asyncio.sleep(0.02)
        await stage.until(lambda: stage.says("p") == "waiting for 3 of 4 pods")
        assert stage.writes() == 1
        stage.teller.gather([(stage.pod("p"), "waiting for 3 of 4 pods")])
        stage.teller.gather([(stage.pod("p"), "waiting for 4 of 4 pods")])
        stage.teller.wait_for([(stage.pod("p"), "no room")])  # a decision was quicker
        await stage.until(lambda: stage.says("p") == "no room")
        assert stage.writes() == 2

    played(story)


def test_all_pods_are_told_before_the_first_event() -> None:
    async def story(stage: Stage) -> None:
        pods = [stage.make(f"p{number}") for number in range(20)]
        stage.teller.wait_for([(each, "no room") for each in pods])
        await stage.until(lambda: len(stage.fake.objects(EVENTS)) == 20)
        told = [each.what for each in stage.fake.journal if each.what in ("pods/status", "events")]
        assert told == ["pods/status"] * 20 + ["events"] * 20

    played(story)


def test_a_gated_pod_is_told_without_a_word_for_autoscalers_and_where_it_is_pinned() -> None:
    async def story(stage: Stage) -> None:
        gate = "haversack.dev/placement"
        waiting = stage.make("p", scheduler="default-scheduler", gates=[gate])
        stage.teller.wait_for([(waiting, "no room")])
        await stage.until(lambda: stage.says("p") == "no room")
        scheduled = stage.pod("p").scheduled
        assert scheduled is not None
        assert scheduled.reason == "SchedulingGated"
        stage.teller.pinned(waiting.ref, "n1", "gate-and-pin: kube-scheduler judges it too")
        told = "Pinned to n1 (gate-and-pin: kube-scheduler judges it too)"
        await stage.until(lambda: told in [event["note"] for event in stage.fake.objects(EVENTS)])

    played(story)
