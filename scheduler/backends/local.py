"""This host: attempts are processes with launchers of their own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import structlog

from scheduler.backends.backend import Surroundings
from scheduler.errors import FencedError, HaversackError
from scheduler.execution.blocking import OnThreads
from scheduler.execution.local.executor import LocalExecutor
from scheduler.execution.local.logs import LocalLogReader
from scheduler.execution.local.runtime import HostRuntime
from scheduler.model.node import Node
from scheduler.model.ports import Inventory
from scheduler.model.quantity import UtcSeconds
from scheduler.store.inventory import sync_nodes
from scheduler.store.lease import require
from scheduler.store.transaction import Transaction

log = structlog.get_logger(__name__)

INVENTORY_EVERY_S = 30.0


@dataclass(frozen=True, slots=True)
class Local:
    """Makes the backend of this host, with the nodes that `inventory` shows."""

    inventory: Inventory
    tied_to_host: bool = True

    def highest_epoch(self) -> int:
        """0: the store alone counts leaders."""
        return 0

    def make(self, given: Surroundings) -> LocalBackend:
        """The backend."""
        return LocalBackend(given, self.inventory)


class LocalBackend:
    """Executor, logs and inventory of this host.

    Attributes:
        executor: starts launchers.
        logs: reads their files.
        runtime: takes every job without an image.
        launches_max: launchers that may come up at once.
    """

    def __init__(self, given: Surroundings, inventory: Inventory) -> None:
        execution, data_dir = given.settings.execution, given.settings.store.data_dir
        self._given = given
        self._inventory = inventory
        self._launchers = LocalExecutor(
            data_dir,
            env_allow=execution.env_allow,
            log_bytes_max=execution.log_bytes_max,
            open_files_max=execution.open_files_max,
            launch_before_s=given.launch_before_s,
        )
        self.logs = LocalLogReader(data_dir)
        self.runtime = HostRuntime()
        self.launches_max = execution.launches_in_flight_max or half_of_the_cores()
        self.executor = OnThreads(self._launchers, launches_max=self.launches_max)

    async def begin(self) -> None:
        """Write this host's nodes into the store."""
        await self._sync()

    async def follow(self) -> None:
        """Look at the host from time to time; a change wakes the conductor by its commit."""
        while True:
            await asyncio.sleep(INVENTORY_EVERY_S)
            try:
                await self._sync()
            except FencedError:
                raise
            except HaversackError as error:
                log.warning("inventory not stored", why=str(error))

    async def _sync(self) -> None:
        given = self._given
        nodes = await asyncio.to_thread(self._inventory.nodes)
        await given.database.write(
            partial(_sync_nodes, found=nodes, epoch=given.epoch, now=given.clock.now())
        )

    def troubles(self) -> Mapping[str, str]:
        """Nothing that reconciliation does not tell."""
        return {}

    def warnings(self) -> Mapping[str, str]:
        """None: nobody else binds anything on this host."""
        return {}

    def pod_waits(self, namespace: str, name: str) -> str:
        """Nobody else makes work for a host."""
        del namespace, name
        return ""

    async def close(self) -> None:
        """Launchers go on."""
        self.executor.close()
        self._launchers.close()


def _sync_nodes(tx: Transaction, found: Sequence[Node], epoch: int, now: UtcSeconds) -> None:
    require(tx, epoch)
    sync_nodes(tx, found, now=now)


def half_of_the_cores() -> int:
    """How many launchers may come up at once where nobody said; at least one.

    Each costs some 40 ms of a core. More at once would not start jobs sooner, but every request
    that is answered meanwhile would wait for a core.
    """
    return max(1, len(os.sched_getaffinity(0)) // 2)
