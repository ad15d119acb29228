from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

import pytest
from support.clock import ManualClock
from support.ids import SequentialIds
from support.kubernetes import objects
from support.kubernetes.fake_server import ADMIN, FakeApiServer
from support.kubernetes.resources import LEASES

from scheduler.backends.backend import Surroundings
from scheduler.backends.kubernetes import KubernetesBackend
from scheduler.errors import ConfigurationError, FencedError, HaversackError
from scheduler.execution.kubernetes.access import Access
from scheduler.execution.kubernetes.fence import LEASE, Fence
from scheduler.execution.kubernetes.server import ApiServer
from scheduler.model.quantity import UtcSeconds
from scheduler.settings import KubernetesSettings, Settings
from scheduler.store.database import Database
from scheduler.store.lease import acquire


def backend(database: Database, access: Access, sync_s: float = 60.0) -> KubernetesBackend:
    clock = ManualClock()
    given = Surroundings(
        settings=Settings(kubernetes=KubernetesSettings(sync_s=sync_s)),
        database=database,
        clock=clock,
        ids=SequentialIds(),
        epoch=database.write_sync(lambda tx: acquire(tx, "me", 1e9, clock.now())),
        launch_before_s=lambda: math.inf,
    )
    return KubernetesBackend(given, access)


def test_it_reads_the_cluster_before_anything_is_decided(sqlite_database: Database) -> None:
    async def story() -> None:
        async with FakeApiServer() as fake:
            fake.create(objects.node("n"))
            fake.create(objects.pod("p", gpus=1))
            made = backend(sqlite_database, fake.access)
            await made.begin()
            assert not any(made.troubles().values())
            assert made._unfenced == ""
            assert await made.executor.known() == ()
            await made.close()
            await made.close()

    asyncio.run(story())


async def until(what: Callable[[], bool]) -> None:
    """Wait until it is so; nothing here tells anybody."""
    async with asyncio.timeout(30):
        while not what():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.01)


def test_the_epoch_is_kept_in_its_lease_until_another_leads(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scheduler.backends.kubernetes.KEEP_EVERY_S", 0.01)

    async def story() -> None:
        async with FakeApiServer() as fake, ApiServer(fake.access) as server:
            made = backend(sqlite_database, fake.access)
            await made.begin()
            following = asyncio.create_task(made.follow())
            fake.deny(ADMIN, "get", LEASES.plural)
            await until(lambda: LEASES.plural in made.warnings()["fence"])
            fake.allow(ADMIN)
            await until(lambda: not made.warnings()["fence"])
            await server.delete(LEASES.path("haversack-system", LEASE))
            await until(lambda: bool(fake.objects(LEASES)))
            (lease,) = fake.objects(LEASES)
            assert lease["spec"]["leaseTransitions"] == 1
            assert not following.done()
            await Fence(server, holder="next", user=ADMIN).publish(2)
            with pytest.raises(FencedError, match="next"):
                await asyncio.wait_for(following, 30)
            await made.close()

    asyncio.run(story())


def test_a_leader_that_was_overtaken_does_not_make_a_lease_that_is_gone(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scheduler.backends.kubernetes.KEEP_EVERY_S", 0.01)

    async def story() -> None:
        async with FakeApiServer() as fake, ApiServer(fake.access) as server:
            made = backend(sqlite_database, fake.access)
            await made.begin()
            await sqlite_database.write(lambda tx: acquire(tx, "next", 1e9, UtcSeconds(1e10)))
            await server.delete(LEASES.path("haversack-system", LEASE))
            with pytest.raises(FencedError, match="no longer leads"):
                await asyncio.wait_for(made.follow(), 30)
            assert fake.objects(LEASES) == []
            await made.close()

    asyncio.run(story())


def test_a_cluster_that_cannot_be_read_is_told_of_and_left(sqlite_database: Database) -> None:
    async def story() -> None:
        async with FakeApiServer() as fake:
            for verb in ("list", "watch"):
                fake.deny(ADMIN, verb, "nodes")
            made = backend(sqlite_database, fake.access, sync_s=0.5)
            with pytest.raises(ConfigurationError, match=r"not read within 0\.5 s: nodes:"):
                await made.begin()
            await made.close()

    asyncio.run(story())


def test_a_cluster_that_is_not_there_is_told_of(sqlite_database: Database) -> None:
    async def story() -> None:
        async with FakeApiServer() as fake:
            access = fake.access
        made = backend(sqlite_database, access)
        with pytest.raises(HaversackError, match="no API server answers"):
            await made.begin()
        await made.close()

    asyncio.run(story())


def test_what_never_began_can_be_closed(sqlite_database: Database) -> None:
    async def story() -> None:
        async with FakeApiServer() as fake:
            await backend(sqlite_database, fake.access).close()

    asyncio.run(story())
