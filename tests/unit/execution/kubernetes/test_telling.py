from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from support.clock import ManualClock
from support.kubernetes.fake_server import FakeApiServer
from support.kubernetes.faults import Fault
from support.kubernetes.objects import binding, pod
from support.kubernetes.resources import PODS

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

    def make(self, name: str) -> Pod:
        self.fake.create(pod(name))
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
