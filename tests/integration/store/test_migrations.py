from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from support.builders import NOW, node
from support.clock import ManualClock
from support.store import insert_job, job_row

from scheduler.errors import ConfigurationError
from scheduler.model.quantity import JobId
from scheduler.model.site import ANYWHERE
from scheduler.model.snapshot import Snapshot
from scheduler.settings import StoreSettings
from scheduler.store import schema, tables
from scheduler.store.database import Database, Transaction
from scheduler.store.inventory import sync_nodes
from scheduler.store.snapshot import load_delta


def _indexes(connection: sa.Connection) -> dict[str, str]:
    if connection.dialect.name == "sqlite":
        query = "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
    else:
        query = (
            "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'"
            " AND indexname NOT LIKE 'alembic%'"
        )
    return {row[0]: " ".join(row[1].split()) for row in connection.execute(sa.text(query))}


def _checks(connection: sa.Connection) -> dict[str, set[tuple[str | None, str]]]:
    found = sa.inspect(connection)
    return {
        table: {(check["name"], check["sqltext"]) for check in found.get_check_constraints(table)}
        for table in tables.metadata.tables
    }


def _assert_made_anew_is_as_migrated(database: Database, empty: sa.Engine) -> None:
    def look(tx: Transaction) -> tuple[object, object]:
        # Alembic compares neither the WHERE of an index nor CHECK constraints.
        return _indexes(tx.connection), _checks(tx.connection)

    with empty.begin() as connection:
        command.upgrade(schema.alembic_config(connection), "head")
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, tables.metadata) == []
        assert database.read_sync(look) == (_indexes(connection), _checks(connection))
        version = sa.text("SELECT version_num FROM alembic_version")
        migrated_to = connection.execute(version).scalar_one()
    assert database.read_sync(lambda tx: tx.connection.execute(version).scalar_one()) == migrated_to


def test_a_new_sqlite_store_is_as_migrated(tmp_path: Path) -> None:
    database = Database.open(StoreSettings(data_dir=tmp_path / "d"), clock=ManualClock())
    empty = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
    _assert_made_anew_is_as_migrated(database, empty)
    empty.dispose()
    database.close()


@pytest.mark.postgres
def test_a_new_postgres_store_is_as_migrated(
    tmp_path: Path, postgres_url: str, empty_postgres_url: str
) -> None:
    settings = StoreSettings(data_dir=tmp_path / "d", database_url=postgres_url)
    database = Database.open(settings, clock=ManualClock())
    empty = sa.create_engine(empty_postgres_url)
    _assert_made_anew_is_as_migrated(database, empty)
    empty.dispose()
    database.close()


def test_head_names_the_newest_script(sqlite_database: Database) -> None:
    def newest(tx: Transaction) -> str | None:
        return ScriptDirectory.from_config(schema.alembic_config(tx.connection)).get_current_head()

    assert sqlite_database.read_sync(newest) == schema.HEAD


def test_opening_again_changes_nothing(store_settings: StoreSettings) -> None:
    def generation(tx: Transaction) -> object:
        return tx.connection.execute(sa.select(tables.head)).one()

    seen = []
    for _ in range(2):
        database = Database.open(store_settings, clock=ManualClock())
        seen.append(database.read_sync(generation))
        database.close()
    assert seen[0] == seen[1]


def test_an_older_schema_is_brought_up_and_keeps_its_rows(store_settings: StoreSettings) -> None:
    def look(tx: Transaction) -> tuple[object, object]:
        return _indexes(tx.connection), job_row(tx, "j-0")

    database = Database.open(store_settings, clock=ManualClock())
    database.write_sync(lambda tx: insert_job(tx, "j-0"))
    before = database.read_sync(look)
    database.write_sync(lambda tx: command.downgrade(schema.alembic_config(tx.connection), "0001"))
    assert database.read_sync(lambda tx: _indexes(tx.connection)) != before[0]
    database.close()
    database = Database.open(store_settings, clock=ManualClock())
    assert database.read_sync(look) == before
    database.close()


def test_jobs_and_nodes_from_before_sites_may_sit_anywhere(store_settings: StoreSettings) -> None:
    def look(tx: Transaction) -> Snapshot:
        return Snapshot().apply(load_delta(tx, 0))

    database = Database.open(store_settings, clock=ManualClock())
    database.write_sync(lambda tx: insert_job(tx, "j-0"))
    database.write_sync(lambda tx: sync_nodes(tx, [node("a")], now=NOW))
    before = database.read_sync(look)
    database.write_sync(lambda tx: command.downgrade(schema.alembic_config(tx.connection), "0002"))
    columns = database.read_sync(
        lambda tx: {column["name"] for column in sa.inspect(tx.connection).get_columns("nodes")}
    )
    assert columns.isdisjoint({"labels", "taints", "extras"})
    database.close()
    database = Database.open(store_settings, clock=ManualClock())
    after = database.read_sync(look)
    assert (after.nodes, after.waiting) == (before.nodes, before.waiting)
    assert list(after.nodes.values()) == [node("a")]
    assert after.waiting[JobId("j-0")].shape.site == ANYWHERE
    database.close()


def test_a_newer_schema_is_refused(store_settings: StoreSettings) -> None:
    database = Database.open(store_settings, clock=ManualClock())
    database.write_sync(
        lambda tx: tx.connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    )
    database.close()
    with pytest.raises(ConfigurationError, match="9999"):
        Database.open(store_settings, clock=ManualClock())
    # Refusing let go of the directory.
    with pytest.raises(ConfigurationError, match="9999"):
        Database.open(store_settings, clock=ManualClock())
