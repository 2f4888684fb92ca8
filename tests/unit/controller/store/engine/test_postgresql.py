"""Test PostgreSQL: roles of transactions, restarts, notifications, errors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from postgres import APP, Cluster, running_cluster
from psycopg import sql

from polydev.controller.store.engine import pg_notify
from polydev.controller.store.engine.database import Database, migrate, open_database
from polydev.controller.store.queries.accounts import users
from polydev.shared.domain import User, UserId, now
from polydev.shared.errors import BadRequest, BadSettings, DatabaseUnavailable

ANN, BEN = UserId("ann"), UserId("ben")
LIMIT_S = 20


@pytest.fixture
async def store(postgresql_url: str, tmp_path: Path) -> AsyncIterator[Database]:
    database = open_database(postgresql_url, tmp_path)
    async with database.write() as connection:
        for name in (ANN, BEN):
            await users.insert(connection, User(name, f"{name}@example.test", now()))
    yield database
    await database.close()


@pytest.fixture
async def other_store(postgresql_url: str, tmp_path: Path) -> AsyncIterator[Database]:
    """The same database, opened by another controller."""
    database = open_database(postgresql_url, tmp_path)
    yield database
    await database.close()


@pytest.fixture(scope="module")
def own_cluster() -> Iterator[Cluster]:
    """A server of this module, which tests stop and strip of roles."""
    with running_cluster() as cluster:
        yield cluster


async def _add(store: Database, name: str) -> None:
    async with store.write() as connection:
        await users.insert(connection, User(UserId(name), f"{name}@example.test", now()))


async def _seen(store: Database, user: UserId | None) -> set[str]:
    async with store.read(user) as connection:
        return {row.id for row in await connection.execute(sa.text("SELECT id FROM users"))}


# -- roles of transactions -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "SET polydev.user_id = 'ann'",
        "SELECT set_config('polydev.user_id', 'ann', false)",
        "SET ROLE polydev_worker",
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
        """SET request.jwt.claims = '{"sub": "ann"}'""",
    ],
)
async def test_user_of_a_transaction_does_not_leak_into_the_next(
    store: Database, statement: str
) -> None:
    """Even if a statement tries to make it stay."""
    async with store.write(BEN) as connection:
        await connection.execute(sa.text(statement))
    for _ in range(3):
        assert await _seen(store, BEN) == {"ben"}
        assert await _seen(store, None) == {"ann", "ben"}
        assert await _seen(store, UserId("somebody else")) == set()


async def test_concurrent_users_see_only_their_rows(store: Database) -> None:
    async def look(user: UserId) -> None:
        for _ in range(10):
            assert await _seen(store, user) == {str(user)}

    await asyncio.gather(*(look(user) for user in (ANN, BEN) * 10))


async def test_an_empty_user_id_is_refused(store: Database) -> None:
    with pytest.raises(ValueError, match="empty user id"):
        await _seen(store, UserId(""))


async def test_read_transaction_is_a_read_only_snapshot(store: Database) -> None:
    async with store.read() as connection:
        before = (await connection.execute(sa.text("SELECT count(*) FROM users"))).scalar_one()
        await _add(store, "new")
        assert (await connection.execute(sa.text("SELECT count(*) FROM users"))).scalar() == before
    with pytest.raises(sa.exc.DBAPIError, match="read-only"):
        async with store.read() as connection:
            await connection.execute(sa.text("DELETE FROM users"))


async def test_read_cancelled_at_any_point_leaves_a_usable_connection(
    store: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task can be cancelled wherever the client library yields."""
    monkeypatch.setattr("psycopg.waiting.MAX_BUSY_TIME", 0)  # as if the loop were always busy
    moment, is_cut = 0, True
    while is_cut:
        reading = asyncio.create_task(_seen(store, None))
        for _ in range(moment):
            await asyncio.sleep(0)
        reading.cancel()
        is_cut = await _is_cancelled(reading)
        await _add(store, f"after moment {moment}")
        moment += 1
    assert moment > 10


async def _is_cancelled(task: asyncio.Task[object]) -> bool:
    try:
        await asyncio.wait_for(task, LIMIT_S)
    except asyncio.CancelledError:
        return True
    return False


async def test_nul_character_is_a_bad_request(store: Database) -> None:
    with pytest.raises(BadRequest):
        await _add(store, "nul\0")


# -- notifications ---------------------------------------------------------------------------------


async def test_change_notifies_other_controllers(store: Database, other_store: Database) -> None:
    await _wait_until_listening(other_store)
    change = other_store.next_change()
    await _add(store, "new")
    await asyncio.wait_for(change.wait(), LIMIT_S)
    assert "new" in await _seen(other_store, None)


async def test_many_writes_share_few_notifications(store: Database, postgresql_url: str) -> None:
    async with await psycopg.AsyncConnection.connect(postgresql_url, autocommit=True) as raw:
        await raw.execute("LISTEN polydev_change")
        began_s = time.monotonic()
        for number in range(200):
            await _add(store, f"person {number}")
        took_s = time.monotonic() - began_s
        heard = [it async for it in raw.notifies(timeout=1)]
    assert 1 <= len(heard) < min(200, took_s / pg_notify._BATCH_S + 3)


async def test_pending_notification_is_sent_on_close(
    store: Database, other_store: Database
) -> None:
    await _wait_until_listening(other_store)
    change = other_store.next_change()
    await _add(store, "new")
    await store.close()
    await asyncio.wait_for(change.wait(), LIMIT_S)


async def _wait_until_listening(store: Database) -> None:
    """Wait until it listens to other controllers."""
    await asyncio.wait_for(store.next_change().wait(), LIMIT_S)


# -- restarts --------------------------------------------------------------------------------------


async def test_reconnects_after_a_server_restart(own_cluster: Cluster, tmp_path: Path) -> None:
    url = own_cluster.database()
    store = open_database(url, tmp_path)
    await _wait_until_listening(
        store
    )  # before its own first change: it ignores its own notifications
    await asyncio.gather(*(_add(store, f"p{number}") for number in range(8)))
    heard = store.next_change()
    own_cluster.stop()
    with pytest.raises(DatabaseUnavailable, match=r"127\.0\.0\.1"):
        await _seen(store, None)
    own_cluster.start()
    for _ in range(10):
        assert len(await _seen(store, None)) == 8
    await asyncio.wait_for(heard.wait(), LIMIT_S)  # notifications may have been missed
    await store.close()


async def test_transaction_aborted_by_the_server_is_reported(
    store: Database, postgres: Cluster
) -> None:
    async def be_cut() -> None:
        async with store.write() as connection:
            pid = (await connection.execute(sa.text("SELECT pg_backend_pid()"))).scalar_one()
            postgres.administer(f"SELECT pg_terminate_backend({pid})")
            await connection.execute(sa.text("SELECT 1"))

    with pytest.raises(DatabaseUnavailable):
        await be_cut()
    assert await _seen(store, ANN) == {"ann"}


# -- error messages --------------------------------------------------------------------------------


async def _refusal(url: str, folder: Path) -> BadSettings:
    with pytest.raises(BadSettings) as caught:
        await migrate(url, folder)
    assert "\n" not in caught.value.line()
    return caught.value


async def test_missing_server_is_reported(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable) as caught:
        await migrate("postgresql://me:hunter2@127.0.0.1:1/polydev", tmp_path)
    assert "127.0.0.1" in caught.value.line()
    assert "hunter2" not in caught.value.line()


async def test_wrong_password_is_reported(postgres: Cluster, tmp_path: Path) -> None:
    refused = await _refusal(postgres.url("postgres", password="hunter2"), tmp_path)
    assert APP in refused.line()
    assert "DATABASE_URL" in refused.line()
    assert "hunter2" not in refused.line()


async def test_missing_database_is_reported(postgres: Cluster, tmp_path: Path) -> None:
    refused = await _refusal(postgres.url("nowhere"), tmp_path)
    assert f'CREATE DATABASE "nowhere" OWNER "{APP}";' in refused.line()


async def test_login_without_create_right_is_reported(postgres: Cluster, tmp_path: Path) -> None:
    url = postgres.empty_database(owner="postgres")
    refused = await _refusal(url, tmp_path)
    name = url.rpartition("/")[2]
    assert f"ALTER DATABASE {name} OWNER TO {APP};" in refused.line()
    _run_hint(postgres, refused)
    await migrate(url, tmp_path)
    postgres.drop(url)


async def test_login_without_role_right_is_reported(own_cluster: Cluster, tmp_path: Path) -> None:
    """The SQL in the hint is all that an administrator must run."""
    own_cluster.administer("CREATE ROLE plain LOGIN PASSWORD 'plain'")
    for missing in (True, False):
        if missing:
            _drop_roles(own_cluster)
        name = own_cluster.empty_database(owner="plain").rpartition("/")[2]
        url = own_cluster.url(name, "plain", "plain")
        refused = await _refusal(url, tmp_path)
        assert ("CREATE ROLE" in refused.hint) == missing
        _run_hint(own_cluster, refused)
        await migrate(url, tmp_path)
        own_cluster.administer("REVOKE polydev_worker, polydev_person FROM plain")


def _run_hint(cluster: Cluster, refused: BadSettings) -> None:
    cluster.administer(refused.hint.partition("run: ")[2])


def _drop_roles(cluster: Cluster) -> None:
    with cluster.superuser() as connection:
        rows = connection.execute("SELECT datname FROM pg_database WHERE datallowconn").fetchall()
    for (name,) in rows:
        if str(name).startswith("template"):
            continue
        with cluster.superuser(str(name)) as connection:
            connection.execute("DROP OWNED BY polydev_worker, polydev_person")
    cluster.administer("DROP ROLE polydev_worker, polydev_person")


# -- migrations ------------------------------------------------------------------------------------


async def test_concurrent_starts_migrate_once(postgres: Cluster, tmp_path: Path) -> None:
    url = postgres.empty_database()
    moves = await asyncio.gather(*(migrate(url, tmp_path) for _ in range(4)))
    assert len([was for was, _ in moves if was is None]) == 1
    assert len({is_now for _, is_now in moves}) == 1
    postgres.drop(url)


async def test_grants_to_other_roles_are_revoked(postgres: Cluster, tmp_path: Path) -> None:
    """Supabase grants its roles all rights on new tables."""
    url = postgres.empty_database()
    with postgres.superuser(url) as connection:
        connection.execute("CREATE ROLE anon_of_test NOLOGIN")
        connection.execute(
            sql.SQL(
                "ALTER DEFAULT PRIVILEGES FOR ROLE {} GRANT ALL ON TABLES TO anon_of_test"
            ).format(sql.Identifier(APP))
        )
    await migrate(url, tmp_path)
    with postgres.superuser(url) as connection:
        given = connection.execute(
            "SELECT table_name, privilege_type FROM information_schema.table_privileges"
            " WHERE grantee IN ('anon_of_test', 'PUBLIC') AND table_schema = 'public'"
        ).fetchall()
    assert given == []
    postgres.drop(url)
    postgres.administer("DROP ROLE anon_of_test")
