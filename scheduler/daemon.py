"""The daemon: builds every part from settings, runs them in one event loop, takes them down."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from scheduler import import_guard
from scheduler.backends.backend import BackendMaker, Surroundings
from scheduler.bootstrap import daemon_identity, ensure_admin_token, live_profile
from scheduler.cli.exits import ExitCode
from scheduler.clock import SystemClock, since_boot_s
from scheduler.conductor import Conductor, Pace
from scheduler.cycle import CycleContext, CycleReport
from scheduler.errors import BusyError, ConfigurationError, FencedError, StorageError
from scheduler.execution.apply import Applier
from scheduler.execution.reconcile import Reconciler
from scheduler.execution.watch import Watcher
from scheduler.ids import SystemIds
from scheduler.listening import Door, EndpointFile, check_binding
from scheduler.model.quantity import UtcSeconds
from scheduler.observability import Metrics
from scheduler.settings import Settings
from scheduler.solver_process import SolverProcess
from scheduler.store.cycles import DatabaseCycleStore
from scheduler.store.database import Database
from scheduler.store.execution import SqlExecutionStore
from scheduler.store.lease import acquire, release, renew, require_same_host
from scheduler.store.transaction import Transaction

if TYPE_CHECKING:
    from api.app import Application

log = structlog.get_logger(__name__)


def one_of_several(settings: Settings, maker: BackendMaker) -> bool:
    """Whether another daemon may lead in our place: both see the same store and the same work."""
    return bool(settings.store.database_url) and not maker.tied_to_host


def _take_lead(
    tx: Transaction, holder: str, ttl_s: float, now: UtcSeconds, *, above: int, tied_to_host: bool
) -> int:
    if tied_to_host:
        require_same_host(tx, holder)
    return acquire(tx, holder, ttl_s, now, above=above)


_GARBAGE_THRESHOLDS = (10_000, 20, 100)
"""A cluster is a million values that live long and form no cycles: by its defaults the collector
would go over them again and again while they are read, a fifth of the time of a start."""


def _end_at_once(error: BaseException) -> None:
    """End as if killed: what the store holds is in doubt, so not one step more may build on it.

    No way out is tried better than that of kill -9, and the next start reads what is really there.
    """
    sys.stderr.write(f"error: the store has stopped for good: {error}\n")
    sys.stderr.flush()
    os._exit(ExitCode.ERROR)


def end_with_any_thread() -> None:
    """From now on a thread that dies of a bug ends the process: no part is missed silently."""

    def ended(args: threading.ExceptHookArgs) -> None:
        threading.__excepthook__(args)
        sys.stderr.write(f"error: a thread of the daemon ended: {args.exc_value!r}\n")
        sys.stderr.flush()
        os._exit(ExitCode.ERROR)

    threading.excepthook = ended


def _unusable(data_dir: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"the data directory {data_dir} cannot be used: {error}",
        hint="it must be writable for the user who runs the daemon, and have room",
    )


def told_to_stop() -> asyncio.Event:
    """Set by SIGTERM or SIGINT from now on. Within the event loop."""
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    return stopping


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the running daemon answers."""

    url: str
    data_dir: Path
    token_file: Path
    epoch: int


class Daemon:
    """API, conductor and execution in one process."""

    def __init__(self, settings: Settings, backend: BackendMaker, door: Door | None = None) -> None:
        """Build every part.

        Args:
            settings: of this daemon.
            backend: makes what jobs run on.
            door: where to answer, if we listen already; ours from now on unless this raises.

        Raises:
            AlreadyRunningError: another daemon owns the data directory.
            NotLeaderError: another daemon leads the database.
            ConfigurationError: unsafe address, port in use, a policy that cannot be live, or a
                foreign package in our name.
            StorageError: the store cannot be opened or written.
        """
        import_guard.check()
        check_binding(settings.api)
        self._settings = settings
        self._profile = live_profile(settings.queue)
        self._maker = backend
        self._endpoint = EndpointFile(settings.store.data_dir)
        self._clock = SystemClock()
        self._ids = SystemIds(self._clock)
        self.metrics = Metrics()
        self.database = Database.open(settings.store, clock=self._clock)
        self.database.on_failure(_end_at_once)
        try:
            self._open(door)
        except OSError as error:
            self.database.close()
            raise _unusable(settings.store.data_dir, error) from error
        except BaseException:
            self.database.close()
            raise

    def _open(self, door: Door | None) -> None:
        settings, database, clock = self._settings, self.database, self._clock
        data_dir = settings.store.data_dir
        self._holder = daemon_identity(data_dir)
        above = self._maker.highest_epoch()
        asked_s = since_boot_s()
        self.epoch = database.write_sync(
            lambda tx: _take_lead(
                tx,
                self._holder,
                settings.store.lease_ttl_s,
                clock.now(),
                above=above,
                tied_to_host=self._maker.tied_to_host,
            )
        )
        self._led(asked_s)
        self.token_file = ensure_admin_token(database, data_dir, clock, self._ids)
        self._backend = self._maker.make(
            Surroundings(
                settings=settings,
                database=database,
                clock=clock,
                ids=self._ids,
                epoch=self.epoch,
                launch_before_s=lambda: self._launch_before_s,
            )
        )
        self._store = SqlExecutionStore(
            database,
            epoch=self.epoch,
            ids=self._ids,
            free_requeues_max=settings.queue.free_requeues_max,
            retry_backoff_max_s=settings.queue.retry_backoff_max_s,
            requeue_backoff_s=settings.queue.requeue_backoff_s,
            requeue_backoff_max_s=settings.queue.requeue_backoff_max_s,
        )
        self._door = door or Door(settings.api)
        self._solver = SolverProcess()

    async def run(
        self, ready: Callable[[Endpoint], None], stopping: asyncio.Event | None = None
    ) -> None:
        """Serve until told to stop; running jobs go on without us.

        Args:
            ready: called once the API answers.
            stopping: tells us to stop; SIGTERM and SIGINT do if there is none.

        Raises:
            FencedError: another leader has taken over; this process has stopped acting.
        """
        stopping = stopping or told_to_stop()
        # What was built so far lives as long as the process: a full collection would walk all of
        # it each time, 0.15 s during which nobody is answered (docs/adr/0002).
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_GARBAGE_THRESHOLDS)
        try:
            await self._solver.start()  # it imports its libraries while the backend begins
            if await self._begun(stopping):
                await self._serve(stopping, ready)
        finally:
            await self._solver.close()
            await self._close()

    async def _begun(self, stopping: asyncio.Event) -> bool:
        """Whether the backend has begun before we were told to stop; the lease is kept meanwhile.

        Raises:
            FencedError: another leader has taken over.
        """
        begun = asyncio.create_task(self._backend.begin(), name="begin")
        keeping = asyncio.create_task(self._keep_lease(), name="lease")
        stop_wanted = asyncio.create_task(stopping.wait(), name="signal")
        tasks = (begun, keeping, stop_wanted)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in (begun, keeping):
            if not task.cancelled():
                task.result()
        return not begun.cancelled()

    async def _serve(self, stopping: asyncio.Event, ready: Callable[[Endpoint], None]) -> None:
        parts = self._parts(asyncio.get_running_loop())
        app: Application | None = None
        tasks = [asyncio.create_task(part, name=name) for name, part in parts.coroutines]
        stop_wanted = asyncio.create_task(stopping.wait(), name="signal")
        try:
            # Importing the API takes as long as a thousand pods: deciding does not wait for it.
            app = await asyncio.to_thread(self._app, parts)
            gc.freeze()
            serving = await self._door.open(app)
            self._announce(ready)
            done, _ = await asyncio.wait(
                [serving, stop_wanted, *tasks], return_when=asyncio.FIRST_COMPLETED
            )
            for task in done - {stop_wanted}:
                task.result()  # a part that ends by itself has failed: say why
                if not stop_wanted.done():
                    raise RuntimeError(f"{task.get_name()} ended by itself")
        finally:
            self._stopping = True
            if app is not None:
                app.stop_streams()
            self._door.leave()
            for task in (*tasks, stop_wanted):
                task.cancel()
            await asyncio.gather(*tasks, stop_wanted, return_exceptions=True)
            await self._door.shut()

    async def _close(self) -> None:
        await self._backend.close()  # before others may lead
        clock = self._clock
        await self._door.shut()
        self._endpoint.remove()
        try:
            self.database.write_sync(lambda tx: release(tx, self._holder, self.epoch, clock.now()))
        except (FencedError, StorageError) as error:
            log.warning("lease not released", why=str(error))
        self._door.close()
        self.database.close()

    _stopping = False
    _launch_before_s = math.inf

    def _parts(self, loop: asyncio.AbstractEventLoop) -> _Parts:
        settings, backend = self._settings, self._backend
        solver = self._solver
        conductor = Conductor(
            self._cycle_context(solver),
            Pace(settings.cycle.batch_window_s, settings.cycle.rest_ratio),
            finished=lambda report: self._cycle_finished(report, applier),
        )
        watcher = Watcher(
            self._store,
            backend.executor,
            self._clock,
            on_freed=conductor.wake,
        )
        applier = Applier(
            self._store,
            backend.executor,
            watcher,
            self._clock,
            in_flight_max=backend.launches_max,
        )
        reconciler = Reconciler(
            self._store,
            backend.executor,
            watcher,
            applier,
            self._clock,
            every_s=settings.execution.reconcile_every_s,
        )

        def committed(_revision: int) -> None:
            loop.call_soon_threadsafe(conductor.wake)
            loop.call_soon_threadsafe(applier.wake)

        self.database.on_commit(committed)

        async def execute() -> None:
            # Adopt what is running before anything new is launched.
            await reconciler.adopt()
            await _together(
                applier.run(),
                watcher.run(),
                reconciler.run(),
                conductor.run(),
                backend.follow(),
            )

        return _Parts(
            readiness=lambda: self._readiness(conductor, solver, reconciler),
            wake=conductor.wake,
            coroutines=(("execute", execute()), ("lease", self._keep_lease())),
        )

    def _cycle_context(self, solver: SolverProcess) -> CycleContext:
        settings = self._settings
        return CycleContext(
            store=DatabaseCycleStore(
                self.database,
                self.epoch,
                self._ids,
                settings.placement.terms,
                self._profile.sees,
            ),
            solver=solver,
            profile=self._profile,
            effort=settings.cycle.effort,
            seed=settings.cycle.seed,
            hard_limit_s=settings.cycle.hard_limit_s,
            clock=self._clock,
            rejected_plans=settings.store.data_dir / "rejected-plans",
        )

    def _app(self, parts: _Parts) -> Application:
        from api.app import create_app  # noqa: PLC0415 - half of what the daemon imports

        settings = self._settings
        return create_app(
            database=self.database,
            clock=self._clock,
            ids=self._ids,
            settings=settings,
            log_reader=self._backend.logs,
            runtime=self._backend.runtime,
            wake=parts.wake,
            readiness=parts.readiness,
            warnings=self._backend.warnings,
            pod_waits=self._backend.pod_waits,
            metrics=self.metrics,
        )

    def _readiness(
        self, conductor: Conductor, solver: SolverProcess, reconciler: Reconciler
    ) -> dict[str, str]:
        """What is not in order, by part; empty values are fine."""
        return {
            "daemon": "shutting down" if self._stopping else "",
            "store": self.database.trouble,
            "scheduler": conductor.trouble,
            "solver": solver.trouble,
            "execution": reconciler.trouble,
            **self._backend.troubles(),
        }

    def _cycle_finished(self, report: CycleReport, applier: Applier) -> None:
        self.metrics.cycle_finished(
            duration_s=report.duration_s,
            value=report.value,
            bound=report.bound,
            gap=report.gap,
            placed=len(report.placed),
            refused=len(report.refused),
            killed=report.killed,
        )
        applier.wake()

    def _announce(self, ready: Callable[[Endpoint], None]) -> None:
        endpoint = Endpoint(
            url=self._door.url,
            data_dir=self._settings.store.data_dir,
            token_file=self.token_file,
            epoch=self.epoch,
        )
        try:
            self._endpoint.write(endpoint.url)
        except OSError as error:
            raise _unusable(endpoint.data_dir, error) from error
        ready(endpoint)

    async def _keep_lease(self) -> None:
        ttl_s = self._settings.store.lease_ttl_s
        while True:
            await asyncio.sleep(ttl_s / 3)
            if self.database.dialect != "postgresql":  # on SQLite the file lock is the lease
                continue
            asked_s = since_boot_s()
            try:
                await self.database.write(
                    lambda tx: renew(tx, self._holder, self.epoch, ttl_s, self._clock.now())
                )
            except (StorageError, BusyError) as error:
                # Without the database nothing is decided or launched; what runs goes on.
                log.warning("lease not renewed", why=str(error))
            else:
                self._led(asked_s)

    def _led(self, asked_s: float) -> None:
        """The lease was ours at `asked_s`: note until when launchers may start.

        A third of the lease is kept back for a launcher that is slow between its look at the clock
        and its first process, as nothing else fences that.
        """
        if self.database.dialect == "postgresql":
            self._launch_before_s = asked_s + self._settings.store.lease_ttl_s * 2 / 3


async def _together(*parts: Coroutine[object, object, object]) -> None:
    """Run the parts until one ends; the others end with it, so that none goes on alone."""
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


@dataclass(frozen=True, slots=True)
class _Parts:
    readiness: Callable[[], dict[str, str]]
    wake: Callable[[], None]
    coroutines: tuple[tuple[str, Coroutine[object, object, object]], ...]
