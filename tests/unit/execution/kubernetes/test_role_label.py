from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from support.kubernetes import objects
from support.kubernetes.fake_server import ADMIN, FakeApiServer

from scheduler.errors import FencedError
from scheduler.execution.kubernetes.labels import LEADER, ROLE
from scheduler.execution.kubernetes.role import RoleLabel
from scheduler.execution.kubernetes.server import ApiServer, RejectedError

NAMESPACE = "haversack-system"


def played(story: Callable[[FakeApiServer, ApiServer], Awaitable[None]]) -> None:
    async def play() -> None:
        async with FakeApiServer() as fake, ApiServer(fake.access) as server:
            fake.create(objects.namespace(NAMESPACE))
            for name in ("haversack-0", "haversack-1"):
                fake.create(objects.pod(name, namespace=NAMESPACE, labels={"app": "haversack"}))
            await story(fake, server)

    asyncio.run(play())


async def marked(server: ApiServer) -> list[str]:
    query = {"labelSelector": f"{ROLE}={LEADER},app=haversack"}
    found = await server.list(f"/api/v1/namespaces/{NAMESPACE}/pods", query)
    return [pod["metadata"]["name"] for pod in found["items"]]


async def we_lead() -> None:
    """We do."""


def test_one_pod_has_it_and_a_successor_takes_it() -> None:
    async def story(fake: FakeApiServer, server: ApiServer) -> None:
        first, second = (RoleLabel(server, NAMESPACE, f"haversack-{n}") for n in (0, 1))
        await first.take()
        assert await marked(server) == ["haversack-0"]
        before = fake.version
        await first.take()
        assert fake.version == before
        await second.take()
        assert await marked(server) == ["haversack-1"]

    played(story)


def test_a_leader_that_was_overtaken_leaves_it_alone() -> None:
    async def overtaken() -> None:
        raise FencedError("epoch 1 no longer leads")

    async def story(_: FakeApiServer, server: ApiServer) -> None:
        await RoleLabel(server, NAMESPACE, "haversack-1").take()
        with pytest.raises(FencedError):
            await RoleLabel(server, NAMESPACE, "haversack-0").keep(overtaken)
        assert await marked(server) == ["haversack-1"]

    played(story)


def test_what_forbids_it_is_told_and_ends_nothing() -> None:
    async def story(fake: FakeApiServer, server: ApiServer) -> None:
        fake.deny(ADMIN, "patch", "pods")
        role = RoleLabel(server, NAMESPACE, "haversack-0")
        with pytest.raises(RejectedError):
            await role.take()
        keeping = asyncio.create_task(role.keep(we_lead))
        async with asyncio.timeout(30):
            while not role.trouble:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.01)
        assert "pods" in role.trouble
        assert not keeping.done()
        keeping.cancel()

    played(story)
