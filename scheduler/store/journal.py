"""The journal with its gapless revision, and the audit chain: both advance under one lock.

A write transaction reads the head row once (locking it on PostgreSQL, which makes writers of all
processes queue up here and nowhere else), counts in memory, and writes head and rows once before
it commits. A savepoint that rolls back takes its counts and rows with it, so no revision is lost.
Rows of the running transaction are therefore not yet in the tables.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import orjson
from sqlalchemy import Connection, insert, select, update

from scheduler.model.quantity import PrincipalId, TenantId, UtcSeconds
from scheduler.store import tables

GENESIS = "0" * 64
"""Hash before the first audit row."""

_READ_HEAD = select(tables.head.c.revision, tables.head.c.audit_hash).where(tables.head.c.id == 1)
_LOCK_HEAD = _READ_HEAD.with_for_update()
_INSERT_JOURNAL = insert(tables.journal)
_INSERT_AUDIT = insert(tables.audit)
_AUDITED = ("tenant_id", "at", "principal_id", "action", "object_id", "outcome", "detail")
_WRITE_HEAD = update(tables.head).where(tables.head.c.id == 1)


def canonical(value: object) -> str:
    """JSON text with sorted keys: equal values give equal text."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


def audit_hash(previous: str, row: Mapping[str, object]) -> str:
    """Hash of one audit row, chained to the one before; `row` holds the columns but id and hash."""
    return hashlib.sha256(previous.encode() + canonical(dict(row)).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Mark:
    """A point to return to when a savepoint rolls back."""

    revision: int
    audit_hash: str
    journal_rows: int
    audit_rows: int


class Journal:
    """The journal and audit rows of one write transaction.

    Attributes:
        revision: head revision, with this transaction's rows counted.
    """

    def __init__(self, connection: Connection) -> None:
        """Read the head; on PostgreSQL this waits for the writer before us."""
        self._connection = connection
        postgres = connection.dialect.name == "postgresql"
        row = connection.execute(_LOCK_HEAD if postgres else _READ_HEAD).one()
        self.revision: int = row.revision
        self._audit_hash: str = row.audit_hash
        self._start: tuple[int, str] = (self.revision, self._audit_hash)
        self._journal_rows: list[dict[str, object]] = []
        self._audit_rows: list[dict[str, object]] = []

    def append(
        self,
        *,
        tenant: TenantId,
        kind: str,
        object_id: str,
        payload: Mapping[str, object],
        at: UtcSeconds,
    ) -> int:
        """Add one journal row and return its revision."""
        self.revision += 1
        self._journal_rows.append(
            {
                "revision": self.revision,
                "tenant_id": tenant,
                "at": at,
                "kind": kind,
                "object_id": object_id,
                "payload": canonical(payload),
            }
        )
        return self.revision

    def append_audit(
        self,
        *,
        tenant: TenantId,
        principal: PrincipalId,
        action: str,
        object_id: str,
        outcome: str,
        detail: Mapping[str, object],
        at: UtcSeconds,
    ) -> None:
        """Add one audit row to the chain."""
        row: dict[str, object] = {
            "tenant_id": tenant,
            "at": float(at),
            "principal_id": principal,
            "action": action,
            "object_id": object_id,
            "outcome": outcome,
            "detail": canonical(detail),
        }
        self._audit_hash = audit_hash(self._audit_hash, row)
        self._audit_rows.append({**row, "hash": self._audit_hash})

    def mark(self) -> Mark:
        """Where the journal stands now."""
        return Mark(self.revision, self._audit_hash, len(self._journal_rows), len(self._audit_rows))

    def return_to(self, mark: Mark) -> None:
        """Forget all that was appended since `mark`."""
        self.revision = mark.revision
        self._audit_hash = mark.audit_hash
        del self._journal_rows[mark.journal_rows :]
        del self._audit_rows[mark.audit_rows :]

    def flush(self) -> None:
        """Write rows and head. At most three statements."""
        if self._journal_rows:
            self._connection.execute(_INSERT_JOURNAL, self._journal_rows)
        if self._audit_rows:
            self._connection.execute(_INSERT_AUDIT, self._audit_rows)
        if (self.revision, self._audit_hash) != self._start:
            self._connection.execute(
                _WRITE_HEAD, {"revision": self.revision, "audit_hash": self._audit_hash}
            )


def head_revision(connection: Connection) -> int:
    """The last committed revision that `connection` sees; 0 in an empty store."""
    return int(connection.execute(_READ_HEAD).one().revision)


@dataclass(frozen=True, slots=True)
class ChainCheck:
    """Outcome of checking the audit chain.

    Attributes:
        rows: rows whose hash was right, from the first on.
        broken_at: id of the first row that was altered, inserted or lost its predecessor; 0 when
            rows are missing at the end; None when the chain is whole.
    """

    rows: int
    broken_at: int | None


def verify_audit_chain(connection: Connection) -> ChainCheck:
    """Recompute every hash of the audit table. O(rows), streamed."""
    ordered = select(tables.audit).order_by(tables.audit.c.id)
    previous = GENESIS
    count = 0
    with connection.execute(ordered.execution_options(yield_per=1000)) as rows:
        for row in rows.mappings():
            previous = audit_hash(previous, {name: row[name] for name in _AUDITED})
            if previous != row["hash"]:
                return ChainCheck(count, int(row["id"]))
            count += 1
    if previous != connection.execute(_READ_HEAD).one().audit_hash:
        return ChainCheck(count, 0)
    return ChainCheck(count, None)
