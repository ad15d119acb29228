"""One of several daemons on one PostgreSQL database: stands by while another leads, then leads.

The database judges who leads, by its own clock (`store/lease.py`). A replica that stands by only
reads the lease's row, at intervals of its own monotonic clock, and tries to lead once that row is
free; then it is a daemon like any other. It answers probes all the while.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

import structlog

from api.standby import Standing, standby_app
from scheduler import import_guard
from scheduler.backends.backend import BackendMaker
from scheduler.bootstrap import daemon_identity, live_profile
from scheduler.clock import SystemClock
from scheduler.daemon import Daemon, Endpoint, told_to_stop
from scheduler.errors import NotLeaderError, StorageError
from scheduler.ids import SystemIds
from scheduler.listening import Door, EndpointFile
from scheduler.settings import Settings
from scheduler.store.datadir import DataDirectory
from scheduler.store.onlooker import Onlooker

log = structlog.get_logger(__name__)

_LOOKS_PER_LEASE = 10
_LOOK_EVERY_MOST_S = 0.5
"""A lease may be long; whoever gives it up should not have to wait for a successor."""


class Replica:
    """Stands by, then leads.

    Args:
        settings: of this daemon, with a PostgreSQL database.
        maker: makes what jobs run on.

    Raises:
        ConfigurationError: a policy that cannot be live, or a foreign package in our name.
    """

    def __init__(self, settings: Settings, maker: BackendMaker) -> None:
        import_guard.check()
        live_profile(settings.queue)
        self._settings = settings
        self._maker = maker
        self._data_dir = settings.store.data_dir
        self._look_every_s = min(_LOOK_EVERY_MOST_S, settings.store.lease_ttl_s / _LOOKS_PER_LEASE)
        self._standing = Standing()

    async def run(self, ready: Callable[[Endpoint], None]) -> None:
        """Wait until nobody leads, then lead until SIGTERM or SIGINT, which end the waiting too.

        Args:
            ready: called once we lead and the API answers.

        Raises:
            AlreadyRunningError: another daemon owns the data directory.
            ConfigurationError: settings, address, database or cluster are such that we could never
                lead.
            FencedError: we led, and another leader has taken over.
            HaversackError: at the start, the database or the cluster does not answer.
        """
        stopping = told_to_stop()
        with Onlooker(self._settings.store) as onlooker:
            # Who could never lead should not be taken for a replica that stands by.
            await asyncio.to_thread(onlooker.look)
            await asyncio.to_thread(self._maker.highest_epoch)
            door = Door(self._settings.api)
            try:
                daemon = await self._lead(door, onlooker, stopping)
                if daemon is not None:
                    onlooker.close()
                    await daemon.run(ready, stopping)
            finally:
                await door.shut()
                door.close()

    async def _lead(self, door: Door, onlooker: Onlooker, stopping: asyncio.Event) -> Daemon | None:
        """A daemon that leads; None if we were told to stop before."""
        clock = SystemClock()
        app = standby_app(self._settings.api, clock, SystemIds(clock), lambda: self._standing)
        answering = await door.open(app)
        while await self._turn_comes(door.url, onlooker, stopping, answering):
            self._standing = Standing()
            try:
                return await asyncio.to_thread(Daemon, self._settings, self._maker, door)
            except NotLeaderError as error:
                log.info("another replica was first", why=str(error))
        return None

    async def _turn_comes(
        self,
        url: str,
        onlooker: Onlooker,
        stopping: asyncio.Event,
        answering: asyncio.Task[None],
    ) -> bool:
        """Wait until nobody leads; False if we were told to stop. The data directory is ours."""
        directory = DataDirectory(self._data_dir)
        endpoint = EndpointFile(self._data_dir)
        try:
            endpoint.write(url)
            ourselves = daemon_identity(self._data_dir)
            while not stopping.is_set():
                if await self._free(onlooker, ourselves):
                    return True
                with suppress(TimeoutError):
                    await asyncio.wait_for(stopping.wait(), self._look_every_s)
                if answering.done():
                    answering.result()
                    raise RuntimeError("nobody answers probes any more")
            endpoint.remove()
            return False
        finally:
            directory.close()

    async def _free(self, onlooker: Onlooker, ourselves: str) -> bool:
        """Whether we may try to lead: nobody does, or we did before a crash.

        The lock of the data directory proves that whoever had our identity is dead.
        """
        try:
            lead = await asyncio.to_thread(onlooker.look)
        except StorageError as error:
            if not self._standing.trouble:
                log.warning("who leads cannot be told", why=str(error))
            self._standing = Standing(self._standing.leader, str(error))
            return False
        if lead is None or lead.holder == ourselves:
            return True
        # An identity is `<host>-<random>`; of a pod, the host is its name.
        leader = lead.holder.rpartition("-")[0]
        if leader != self._standing.leader:
            log.info("standing by", leader=lead.holder, epoch=lead.epoch)
        self._standing = Standing(leader)
        return False
