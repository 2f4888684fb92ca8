"""Test that a SQLite statement needs one hop to its thread."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from polydev.controller.store.engine import sqlite_connection
from polydev.controller.store.engine.database import open_database


@pytest.fixture
def visits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The visits that statements make."""
    counted: list[str] = []
    visit = sqlite_connection.SingleHopConnection.run_in_thread

    async def counting(self, work):  # type: ignore[no-untyped-def]
        counted.append("statement")
        await visit(self, work)

    monkeypatch.setattr(sqlite_connection.SingleHopConnection, "run_in_thread", counting)
    return counted


async def test_a_statement_is_one_visit_rows_and_errors_included(
    tmp_path: Path, visits: list[str]
) -> None:
    database = open_database(None, tmp_path)
    table = sa.Table("t", sa.MetaData(), sa.Column("n", sa.Integer, primary_key=True))
    async with database.write() as connection:
        await connection.run_sync(table.create)
        await connection.execute(sa.insert(table), [{"n": 1}, {"n": 2}])
        changed = await connection.execute(sa.update(table).values(n=table.c.n + 5))
        assert changed.rowcount == 2
    visits.clear()
    async with database.read() as connection:
        rows = (await connection.execute(sa.select(table.c.n).order_by(table.c.n))).all()
    assert [row.n for row in rows] == [6, 7]
    assert len(visits) == 2, "BEGIN and SELECT"
    with pytest.raises(IntegrityError):
        async with database.write() as connection:
            await connection.execute(sa.insert(table).values(n=6))
    async with database.read() as connection:
        assert (
            await connection.execute(sa.select(sa.func.count()).select_from(table))
        ).scalar() == 2
    await database.close()
