"""The protocol between the daemon and what jobs run on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from scheduler.clock import Clock
from scheduler.ids import IdSource
from scheduler.model.ports import Executor, LogReader
from scheduler.model.runtime import Runtime
from scheduler.settings import Settings
from scheduler.store.database import Database


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a backend is given.

    Attributes:
        epoch: the epoch that the store gave this leader.
        launch_before_s: until when on the boot clock this leader may start anything; infinite
            where nobody can take over.
    """

    settings: Settings
    database: Database
    clock: Clock
    ids: IdSource
    epoch: int
    launch_before_s: Callable[[], float]


class Backend(Protocol):
    """Makes decisions real, and tells what there is to decide on."""

    @property
    def executor(self) -> Executor:
        """Carries orders out."""
        ...

    @property
    def logs(self) -> LogReader:
        """Reads what ranks print."""
        ...

    @property
    def runtime(self) -> Runtime:
        """Says which jobs can be run."""
        ...

    @property
    def launches_max(self) -> int:
        """Launch orders to carry out at once."""
        ...

    async def begin(self) -> None:
        """Write what there is into the store; until it returns, nothing is decided.

        Raises:
            FencedError: another leader has taken over.
            HaversackError: what jobs run on, or the store, does not answer.
        """
        ...

    async def follow(self) -> None:
        """Keep the store up to date until cancelled; its commits wake the conductor.

        Raises:
            FencedError: another leader has taken over.
        """
        ...

    def troubles(self) -> Mapping[str, str]:
        """What is not in order, by part; empty values are fine."""
        ...

    def warnings(self) -> Mapping[str, str]:
        """What works but lacks a safeguard, by part; empty values are fine."""
        ...

    def pod_waits(self, namespace: str, name: str) -> str:
        """Why a pod that somebody else made waits outside every job; "" if none is known to."""
        ...

    async def close(self) -> None:
        """No more orders will come, and those under way are given up. What runs goes on.

        Never raises; may be called whether or not `begin` was, and again.
        """
        ...


class BackendMaker(Protocol):
    """Makes the backend once the store is open and this daemon leads."""

    @property
    def tied_to_host(self) -> bool:
        """Whether attempts live on the daemon's own host, so that no other host may take over."""
        ...

    def highest_epoch(self) -> int:
        """The highest epoch that a leader has ever published outside the store; 0 if none. Blocks.

        Raises:
            HaversackError: whoever knows does not answer, so that nobody may lead.
        """
        ...

    def make(self, given: Surroundings) -> Backend:
        """The backend. Nothing outside is touched yet.

        Raises:
            ConfigurationError: what it was told cannot be used.
        """
        ...
