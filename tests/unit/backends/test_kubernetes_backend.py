from __future__ import annotations

import asyncio
import math

import pytest
from support.clock import ManualClock
from support.ids import SequentialIds
from support.kubernetes import objects
from support.kubernetes.fake_server import ADMIN, FakeApiServer

from scheduler.backends.backend import Surroundings
from scheduler.backends.kubernetes import KubernetesBackend
from scheduler.errors import ConfigurationError, HaversackError
from scheduler.execution.kubernetes.access import Access
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
