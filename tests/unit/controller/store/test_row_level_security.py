"""Test row-level security with raw SQL: a user reaches no rows of others.

Two roles act: Polydev's role for users, with few rights, and one like Supabase's, with rights on
every table.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from owned_rows import (
    NO_RIGHT,
    OWNED,
    TABLES,
    UNOWNED,
    Acting,
    as_claimed,
    as_user,
    copy_out,
    owner_of,
    readable_columns,
    row_of,
    rows_of_others,
    try_statement,
    value_of,
    was_refused,
)
from postgres import Cluster

from polydev.controller.store.engine.database import Database
from polydev.shared.domain import UserId


@pytest.fixture(params=["polydev_person", "authenticated"])
def as_ben(
    request: pytest.FixtureRequest, filled: Database, postgres: Cluster, filled_url: str
) -> Acting:
    """Raw SQL as Ben, in Polydev's role for users or in one like Supabase's."""
    return (
        as_user(filled) if request.param == "polydev_person" else as_claimed(postgres, filled_url)
    )


async def test_tables_are_closed_to_their_owner(filled: Database) -> None:
    async with filled.read() as connection:
        query = "SELECT relname, relrowsecurity, relforcerowsecurity FROM pg_class"
        found = {row[0]: (row[1], row[2]) for row in await connection.execute(sa.text(query))}
    assert {name: found[name] for name in TABLES} == dict.fromkeys(TABLES, (True, True))


async def test_login_without_a_role_sees_no_rows(filled: Database, filled_url: str) -> None:
    async with await psycopg.AsyncConnection.connect(filled_url) as raw:
        for name in TABLES:
            assert await try_statement(raw, f"SELECT * FROM {name}") == [], name


async def test_worker_sees_all_rows(filled: Database) -> None:
    async with filled.read() as connection:
        for name in TABLES:
            count = await connection.execute(sa.text(f"SELECT count(*) FROM {name}"))
            assert count.scalar_one() == 2, name


@pytest.mark.parametrize("name", [name for name in OWNED if name != "passwords"])
async def test_own_rows_can_be_read(as_ben: Acting, name: str) -> None:
    async with as_ben() as raw:
        columns = await readable_columns(raw, name)
        assert len(await try_statement(raw, f"SELECT {columns} FROM {name}")) == 1


@pytest.mark.parametrize("name", OWNED)
async def test_rows_of_others_cannot_be_read(as_ben: Acting, name: str) -> None:
    owner = owner_of(TABLES[name])
    async with as_ben() as raw:
        columns = await readable_columns(raw, name)
        rows = await try_statement(raw, f"SELECT {columns} FROM {name}")
        assert was_refused(rows) or ("ann" not in repr(rows)), rows
        count = await try_statement(raw, f"SELECT count(*) FROM {name} WHERE {owner} = 'ann'")
        assert was_refused(count) or count == [(0,)]
        for what in (f"{name} ({columns})", f"(SELECT {columns} FROM {name})"):
            output = await copy_out(raw, what)
            assert NO_RIGHT in output or "ann" not in output


@pytest.mark.parametrize("name", TABLES)
async def test_rows_of_others_cannot_be_changed_or_deleted(
    as_ben: Acting, others_rows: dict[str, list[str]], name: str
) -> None:
    table, owner = TABLES[name], owner_of(TABLES[name])
    anns = "true" if owner is None else f"{owner} = 'ann'"
    async with as_ben() as raw:
        for column in (f'"{column.name}"' for column in table.c):
            for change in (
                f"UPDATE {name} SET {column} = {column} WHERE {anns} RETURNING *",
                f"UPDATE {name} SET {column} = 'ben' WHERE {anns}",
            ):
                changed = await try_statement(raw, change)
                assert not changed or isinstance(changed, str), change
        for deletion in (f"DELETE FROM {name} WHERE {anns} RETURNING *", f"TRUNCATE {name}"):
            gone = await try_statement(raw, deletion)
            assert not gone or was_refused(gone), deletion
        for column in ("id", "user_id", "owner"):
            if column == owner:
                given = await try_statement(raw, f"UPDATE {name} SET {column} = 'ann'")
                assert not given or isinstance(given, str)
        await try_statement(raw, f"DELETE FROM {name}")
        assert await rows_of_others(raw) == others_rows


@pytest.mark.parametrize("name", OWNED)
async def test_rows_cannot_be_inserted_for_others(as_ben: Acting, name: str) -> None:
    def put_down_as(user: str) -> tuple[str, tuple[Any, ...]]:
        row = row_of(TABLES[name], UserId("new"))
        for column in TABLES[name].c:
            if column.name in row and (
                column.foreign_keys or column.name == owner_of(TABLES[name])
            ):
                row[column.name] = value_of(column, UserId(user))
        columns, marks = ", ".join(f'"{it}"' for it in row), ", ".join(["%s"] * len(row))
        values = tuple(json.dumps(it) if isinstance(it, dict) else it for it in row.values())
        return f"INSERT INTO {name} ({columns}) VALUES ({marks})", values

    async with as_ben() as raw:
        for more in ("", " RETURNING 1", " ON CONFLICT DO NOTHING"):
            outcomes = set()
            for user in ("ann", "nobody"):
                statement, values = put_down_as(user)
                outcome = await try_statement(raw, statement + more, *values)
                assert was_refused(outcome), f"{name}: {outcome}"
                outcomes.add(outcome)
            assert len(outcomes) == 1, outcomes


@pytest.mark.parametrize("name", UNOWNED)
async def test_tables_without_users_are_closed(as_ben: Acting, name: str) -> None:
    async with as_ben() as raw:
        rows = await try_statement(raw, f"SELECT * FROM {name}")
        assert rows == [] or was_refused(rows)


async def test_users_cannot_grant_themselves_rights(as_ben: Acting) -> None:
    async with as_ben() as raw:
        made = await try_statement(raw, "UPDATE users SET role = 'administrator' WHERE id = 'ben'")
        assert not made or was_refused(made)


@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("passwords", "hash"),
        ("sign_ins", "secret_hash"),
        ("api_tokens", "secret_hash"),
        ("credentials", "encrypted_credentials"),
    ],
)
async def test_users_cannot_read_their_own_secrets(
    filled: Database, table: str, column: str
) -> None:
    async with as_user(filled)() as raw:
        assert was_refused(await try_statement(raw, f"SELECT {column} FROM {table}"))


@pytest.mark.parametrize(
    "statement", ["UPDATE {} SET reason = ''", "DELETE FROM {}", "TRUNCATE {}"]
)
@pytest.mark.parametrize("role", ["polydev_worker", "polydev_app", "postgres"])
async def test_audit_log_cannot_be_rewritten(
    postgres: Cluster, filled_url: str, role: str, statement: str
) -> None:
    counted = "SELECT count(*) FROM audit_log WHERE reason <> ''"
    with postgres.superuser(filled_url) as raw:
        raw.execute(f"SET ROLE {role}".encode())
        with contextlib.suppress(psycopg.errors.InsufficientPrivilege):
            raw.execute(statement.format("audit_log").encode())
        raw.execute("RESET ROLE")
        assert raw.execute(counted).fetchone() == (2,)
