"""Seeing changes as they are committed: the daemon's event stream says when to look again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from threading import Event, Thread
from typing import TYPE_CHECKING, Final

from scheduler.cli.kubectl.resources import Resource
from scheduler.cli.render import Record
from scheduler.errors import HaversackError

if TYPE_CHECKING:
    from api.client import Client

PACE_S: Final = 0.5
"""So long after a look, a burst of changes is looked at together."""
RECHECK_S: Final = 10.0
"""Looked again after so long in any case: a change may come while the stream is being opened."""


def changes(
    client: Client,
    resource: Resource,
    load: Callable[[], Sequence[Record]],
    *,
    sleep: Callable[[float], None],
) -> Iterator[list[Record]]:
    """Everything, then what is new or looks different, without end.

    One listing at a time, at most one each `PACE_S`, however many changes there are.

    Raises:
        HaversackError: the daemon stayed away, or refuses.
    """
    ears = _Ears(client)
    seen: dict[str, Record] = {}
    while True:
        ears.forget()
        told = {str(record[resource.key]): record for record in load()}
        news = {name: _without(record, resource.pulse) for name, record in told.items()}
        yield [record for name, record in told.items() if seen.get(name) != news[name]]
        seen = news
        sleep(PACE_S)
        ears.wait(RECHECK_S)


def _without(record: Record, key: str) -> Record:
    return {name: value for name, value in record.items() if name != key}


class _Ears:
    """Listens to the event stream in a thread of its own, which ends with the process."""

    def __init__(self, client: Client) -> None:
        self._news = Event()
        self._trouble: HaversackError | None = None
        Thread(target=self._listen, args=(client,), name="events", daemon=True).start()

    def forget(self) -> None:
        self._news.clear()

    def wait(self, limit_s: float) -> None:
        self._news.wait(limit_s)
        if self._trouble is not None:
            raise self._trouble

    def _listen(self, client: Client) -> None:
        try:
            for _event in client.events():
                self._news.set()
        except HaversackError as error:
            self._trouble = error
            self._news.set()
        except RuntimeError:
            # The command is over and has closed the connection under this read.
            self._news.set()
