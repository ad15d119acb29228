"""Jobs of our own on a fake cluster: one daemon's life, shown what a test says."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

from support.clock import ManualClock
from support.execution import launch_order
from support.kubernetes import objects
from support.kubernetes.fake_server import FakeApiServer
from support.kubernetes.resources import NODES, PODS

from scheduler.execution.kubernetes.binder import Binder
from scheduler.execution.kubernetes.cluster import Cluster
from scheduler.execution.kubernetes.evict import Evictor
from scheduler.execution.kubernetes.executor import KubernetesExecutor
from scheduler.execution.kubernetes.launching import Launching
from scheduler.execution.kubernetes.nodes import node_of
from scheduler.execution.kubernetes.pinning import Pinner
from scheduler.execution.kubernetes.pods import Pod, pod_of
from scheduler.execution.kubernetes.server import ApiServer
from scheduler.execution.kubernetes.upkeep import Upkeep
from scheduler.model.execution import AttemptObservation
from scheduler.model.quantity import AttemptId

ORDER = launch_order("true", tasks=3)
A1 = ORDER.attempt_id


async def no_sleep(_: float) -> None:
    """Let others go on, and wait for nothing."""
    await asyncio.sleep(0)


async def _none_launched(_: Sequence[AttemptId]) -> dict[AttemptId, frozenset[str]]:
    return {}


class Life:
    """One daemon's life on a fake cluster, which it is shown when a test says so."""

    def __init__(self, fake: FakeApiServer, server: ApiServer) -> None:
        self.fake, self.server = fake, server
        self.clock = ManualClock()
        self.cluster = Cluster(told=lambda: None, job_namespace="default")
        self.evictor = Evictor(server, self.clock)
        binder = Binder(server, self.evictor, fence=None, sleep=no_sleep)
        self.leading = True
        self.launching = Launching(
            server,
            self.cluster,
            self.evictor,
            namespace="default",
            image="registry.example/x",
            leads=self.lead,
        )
        self.executor = KubernetesExecutor(
            self.cluster,
            binder,
            Pinner(server, binder, self.evictor, told=lambda *_: None),
            self.evictor,
            self.launching,
            self.clock,
            synced=lambda: True,
            launched=_none_launched,
        )
        self.upkeep = self.upkeep_by(binder)
        self.shown: set[str] = set()
        for node in fake.objects(NODES):
            self.cluster.node_seen(node_of(node))

    def upkeep_by(self, binder: Binder) -> Upkeep:
        return Upkeep(
            binder,
            self.cluster,
            self.evictor,
            self.clock,
            epoch=ORDER.epoch,
            keep_s=60.0,
            start_s=900.0,
            given_up=self.executor.give_up,
        )

    def be_at(self, now: float) -> None:
        self.clock.advance(now - self.clock.now())

    async def lead(self, epoch: int) -> bool:
        assert epoch == ORDER.epoch
        return self.leading

    def show(self) -> None:
        pods = [pod_of(each) for each in self.fake.objects(PODS)]
        here = {str(each.ref) for each in pods}
        for gone in self.shown - here:
            self.cluster.pod_gone(gone)
        for each in pods:
            self.cluster.pod_seen(each)
        self.shown = here

    async def seen(self) -> AttemptObservation:
        self.show()
        (seen,) = await self.executor.observe([A1])
        return seen

    async def end(self, rank: int, phase: str, code: int, **status: Any) -> None:
        state = {"terminated": {"exitCode": code, "reason": "Error" if code else "Completed"}}
        body = {"phase": phase, "containerStatuses": [{"name": "main", "state": state}], **status}
        await self.server.patch(f"{path(rank)}/status", {"status": body})

    def pods(self) -> list[Pod]:
        return [pod_of(each) for each in self.fake.objects(PODS)]


def path(rank: int) -> str:
    return f"/api/v1/namespaces/default/pods/test-{A1}-{rank}"


def play(story: Callable[[Life], Awaitable[None]]) -> None:
    async def acting() -> None:
        async with AsyncExitStack() as stack:
            fake = await stack.enter_async_context(FakeApiServer())
            fake.create(objects.node("box"))
            server = await stack.enter_async_context(ApiServer(fake.access, sleep=no_sleep))
            await story(Life(fake, server))

    asyncio.run(acting())


def services(fake: FakeApiServer) -> int:
    resource = fake.target("/api/v1/services").resource
    return len(fake.objects(resource))
