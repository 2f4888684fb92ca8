"""Test migrations, transactions and times of the database."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from polydev.controller.store.engine import locks, schema_version
from polydev.controller.store.engine.database import Database, migrate, open_database
from polydev.controller.store.queries.accounts import users as user_queries
from polydev.controller.store.tables import metadata, users
from polydev.shared.domain import User, UserId, now
from polydev.shared.errors import BadSettings


def _user(name: str) -> User:
    return User(UserId(name), f"{name}@example.test", now())


async def test_migrations_match_the_table_definitions(store: Database) -> None:
    async with store.read() as connection:
        difference = await connection.run_sync(
            lambda sync: compare_metadata(
                MigrationContext.configure(sync, opts={"compare_type": True}), metadata
            )
        )
    assert difference == []


async def test_second_upgrade_changes_nothing(store: Database) -> None:
    async with store.write() as connection:
        await user_queries.insert(connection, _user("kept"))
    await store.upgrade()
    async with store.read() as connection:
        assert await user_queries.find(connection, UserId("kept")) is not None


async def test_migrate_creates_the_missing_folder(tmp_path: Path) -> None:
    folder = tmp_path / "controller"
    await migrate(None, folder)
    assert (folder / "polydev.db").exists()
    assert folder.stat().st_mode & 0o777 == 0o700


async def test_sqlite_uses_wal_and_foreign_keys(tmp_path: Path) -> None:
    store = open_database(None, tmp_path)
    async with store.read() as connection:
        mode = (await connection.exec_driver_sql("PRAGMA journal_mode")).scalar_one()
        keys = (await connection.exec_driver_sql("PRAGMA foreign_keys")).scalar_one()
    await store.close()
    assert (mode, keys) == ("wal", 1)


async def test_failed_transaction_is_rolled_back(store: Database) -> None:
    async def add_and_fail() -> None:
        async with store.write() as connection:
            await user_queries.insert(connection, _user("gone"))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await add_and_fail()
    async with store.read() as connection:
        assert await user_queries.find(connection, UserId("gone")) is None


async def test_read_then_write_transactions_are_serialized(store: Database) -> None:
    async def count_up() -> None:
        async with store.write() as connection:
            await locks.acquire(connection, "counter")
            row = await user_queries.find(connection, UserId("counter"))
            assert row is not None
            number = int(row.email) + 1
            await asyncio.sleep(0)
            await connection.execute(sa.update(users).values(email=str(number)))

    async with store.write() as connection:
        await user_queries.insert(connection, User(UserId("counter"), "0", now()))
    await asyncio.gather(*(count_up() for _ in range(20)))
    async with store.read() as connection:
        row = await user_queries.find(connection, UserId("counter"))
    assert row is not None
    assert row.email == "20"


async def test_times_are_read_back_in_utc(store: Database) -> None:
    at = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    async with store.write() as connection:
        await user_queries.insert(connection, User(UserId("p"), "p@example.test", at))
    async with store.read() as connection:
        row = await user_queries.find(connection, UserId("p"))
    assert row is not None
    assert row.created_at == at
    assert row.created_at.tzinfo is UTC


@pytest.mark.parametrize(
    "url",
    [
        "mysql://db.example.test/polydev",
        "postgresql+asyncpg://db.example.test/polydev",
        "postgresql://db.example.test",
        "nonsense",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///beside-whoever-starts-it.db",
    ],
)
def test_unsupported_database_url_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="DATABASE_URL"):
        open_database(url, tmp_path)


def test_password_of_database_url_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(BadSettings) as caught:
        open_database("mysql://me:hunter2@db.example.test/polydev", tmp_path)
    assert "hunter2" not in caught.value.line()


def test_migrations_are_named_after_their_revisions() -> None:
    scripts = ScriptDirectory(str(schema_version.MIGRATIONS))
    assert scripts.get_heads() == [schema_version.NEWEST]
    assert sorted(it.revision for it in scripts.walk_revisions()) == list(schema_version.KNOWN)


async def test_database_of_a_newer_version_is_refused(store: Database) -> None:
    async with store._transaction(store._backend.owner_options()) as connection:
        await connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
        await connection.commit()
    with pytest.raises(BadSettings, match="newer version"):
        await store.upgrade()
