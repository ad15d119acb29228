"""Looks at who leads a PostgreSQL database without taking part.

Nothing is written or locked and no schema is brought up to date: while a leader of an older version
works, its successor must leave the tables as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from sqlalchemy import extract, func, inspect, select
from sqlalchemy.exc import DBAPIError

from scheduler.settings import StoreSettings
from scheduler.store import engines, schema
from scheduler.store.tables import leader

_LOOK = select(
    leader.c.holder,
    leader.c.epoch,
    (leader.c.expires_at - extract("epoch", func.clock_timestamp())).label("left_s"),
).where(leader.c.id == 1)


@dataclass(frozen=True, slots=True)
class Lead:
    """A lease that is live.

    Attributes:
        left_s: seconds until it ends unless it is renewed, by the database's clock, which is the
            one that judges.
    """

    holder: str
    epoch: int
    left_s: float


class Onlooker:
    """One connection that reads the lease's row; `with` closes it. Not thread-safe.

    Args:
        settings: of a store on PostgreSQL.
    """

    def __init__(self, settings: StoreSettings) -> None:
        _, self._engine = engines.postgres_engines(
            settings.database_url, readers=1, lease_ttl_s=settings.lease_ttl_s
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def look(self) -> Lead | None:
        """Who leads now; None if nobody does. Blocks for one query.

        Raises:
            ConfigurationError: the server is too old, or the database was made by a newer version,
                so that we could never lead.
            StorageError: the database does not answer.
        """
        try:
            with self._engine.connect() as connection, connection.begin():
                engines.check_postgres(connection)
                if not inspect(connection).has_table(leader.name):
                    return None
                schema.refuse_newer(connection)
                row = connection.execute(_LOOK).first()
        except DBAPIError as error:
            told = engines.storage_error(error)
            if told is None:
                raise
            raise told from error
        if row is None or row.left_s <= 0:
            return None
        return Lead(str(row.holder), int(row.epoch), float(row.left_s))

    def close(self) -> None:
        """Let go of the connection. Idempotent."""
        self._engine.dispose()
