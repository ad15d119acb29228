"""The store as invariants read it: plain SQL, none of the code under test."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple


class Job(NamedTuple):
    """A row of `jobs`."""

    id: str
    tenant_id: str
    name: str
    state: str
    desired: str
    tasks_min: int
    tasks_max: int
    gpus_per_task: int
    cpu_milli: int
    memory_mib: int
    attempts: int
    eligible_at: float
    history_seq: int
    version: int


class Attempt(NamedTuple):
    """A row of `attempts`."""

    id: str
    tenant_id: str
    job_id: str
    number: int
    epoch: int
    live: int
    created_at: float


class Held(NamedTuple):
    """A live row of `allocations`."""

    attempt_id: str
    tenant_id: str
    node_id: str
    task_index: int
    resource: str
    amount: int
    gpu_id: str | None
    leaf: int | None


class Intent(NamedTuple):
    """A row of `intents`."""

    attempt_id: str
    tenant_id: str
    job_id: str
    kind: str
    state: str
    epoch: int
    order_json: str


class Place(NamedTuple):
    """A row of `nodes`, or of `gpus` with zeros for sums."""

    id: str
    open: int
    revision: int
    cpu_milli: int
    cpu_milli_used: int
    memory_mib: int
    memory_mib_used: int


class Moved(NamedTuple):
    """A row of `history`."""

    job_id: str
    seq: int
    tenant_id: str
    from_state: str | None
    to_state: str
    event: str


class Journalled(NamedTuple):
    """A row of `journal`."""

    revision: int
    tenant_id: str
    kind: str
    object_id: str


class Audited(NamedTuple):
    """A row of `audit`."""

    tenant_id: str
    at: float
    principal_id: str
    action: str
    object_id: str
    outcome: str
    detail: str
    hash: str


class Decision(NamedTuple):
    """A row of `decisions`."""

    epoch: int
    revision: int
    document: str


@dataclass(frozen=True)
class Books:
    """All that matters of the store at one moment.

    Attributes:
        held: live allocations.
        launches: launch intents by attempt.
        epoch: of the leader.
        revision: head of the journal.
        audit_hash: head of the audit chain.
    """

    jobs: Mapping[str, Job]
    attempts: Mapping[str, Attempt]
    held: Sequence[Held]
    launches: Mapping[str, Intent]
    intents: Sequence[Intent]
    places: Mapping[str, Place]
    epoch: int
    revision: int
    audit_hash: str

    @cached_property
    def live(self) -> Mapping[str, list[Attempt]]:
        """Live attempts by job."""
        found: defaultdict[str, list[Attempt]] = defaultdict(list)
        for attempt in self.attempts.values():
            if attempt.live:
                found[attempt.job_id].append(attempt)
        return found

    @cached_property
    def held_by(self) -> Mapping[str, list[Held]]:
        """Live allocations by attempt."""
        found: defaultdict[str, list[Held]] = defaultdict(list)
        for row in self.held:
            found[row.attempt_id].append(row)
        return found


@dataclass(frozen=True, slots=True)
class News:
    """Rows that only ever get appended, since the last look."""

    moves: Sequence[Moved] = ()
    journal: Sequence[Journalled] = ()
    audit: Sequence[Audited] = ()
    decisions: Sequence[Decision] = ()


_NODES = (
    "SELECT id, present AND NOT cordoned AND health = 'healthy', revision,"
    " cpu_milli, cpu_milli_used, memory_mib, memory_mib_used FROM nodes"
)
_GPUS = "SELECT id, present AND NOT cordoned AND health = 'healthy', revision, 0, 0, 0, 0 FROM gpus"


def _columns(row: type[NamedTuple]) -> str:
    return ", ".join(row._fields)


_JOBS = f"SELECT {_columns(Job)} FROM jobs"  # noqa: S608 - our own field names
_ATTEMPTS = f"SELECT {_columns(Attempt)} FROM attempts"  # noqa: S608 - as above
_HELD = f"SELECT {_columns(Held)} FROM allocations WHERE live"  # noqa: S608 - as above
_INTENTS = f"SELECT {_columns(Intent)} FROM intents"  # noqa: S608 - as above
_MOVES = f"SELECT {_columns(Moved)} FROM history WHERE rowid > ? ORDER BY rowid"  # noqa: S608
_JOURNAL = f"SELECT {_columns(Journalled)} FROM journal WHERE revision > ? ORDER BY revision"  # noqa: S608
_AUDIT = f"SELECT {_columns(Audited)} FROM audit WHERE id > ? ORDER BY id"  # noqa: S608 - as above
_DECISIONS = f"SELECT {_columns(Decision)} FROM decisions WHERE revision > ? ORDER BY revision"  # noqa: S608


class Reader:
    """Reads the books, and what was appended since it last did."""

    def __init__(self, driver: sqlite3.Connection) -> None:
        self._driver = driver
        self._moves = 0
        self._journal = 0
        self._audit = 0
        self._decisions = 0

    def books(self) -> Books:
        """Everything as it stands. O(rows), tens of microseconds for a small store."""
        run = self._driver.execute
        revision, audit_hash = run("SELECT revision, audit_hash FROM journal_head").fetchone()
        intents = [Intent._make(row) for row in run(_INTENTS)]
        places = [Place._make(row) for query in (_NODES, _GPUS) for row in run(query)]
        return Books(
            jobs={row[0]: Job._make(row) for row in run(_JOBS)},
            attempts={row[0]: Attempt._make(row) for row in run(_ATTEMPTS)},
            held=[Held._make(row) for row in run(_HELD)],
            launches={each.attempt_id: each for each in intents if each.kind == "launch"},
            intents=intents,
            places={place.id: place for place in places},
            epoch=run("SELECT epoch FROM leader_lease").fetchone()[0],
            revision=revision,
            audit_hash=audit_hash,
        )

    def news(self) -> News:
        """What was appended since the last call."""
        run = self._driver.execute
        moves = [Moved._make(row) for row in run(_MOVES, (self._moves,))]
        journal = [Journalled._make(row) for row in run(_JOURNAL, (self._journal,))]
        audit = [Audited._make(row) for row in run(_AUDIT, (self._audit,))]
        decisions = [Decision._make(row) for row in run(_DECISIONS, (self._decisions,))]
        self._moves += len(moves)
        self._audit += len(audit)
        if journal:
            self._journal = journal[-1].revision
        if decisions:
            self._decisions = decisions[-1].revision
        return News(moves, journal, audit, decisions)
