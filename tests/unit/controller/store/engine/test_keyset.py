"""Test keyset pagination while rows are added and deleted."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.store.engine import keyset
from polydev.controller.store.engine.database import Database
from polydev.controller.store.engine.keyset import PageSpec
from polydev.controller.store.queries.accounts import users as user_queries
from polydev.controller.store.tables import users
from polydev.shared.domain import User, UserId

_AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
_ORDER = (users.c.created_at, users.c.id)


async def _add(connection: AsyncConnection, name: str, seconds: int) -> None:
    at = _AT + timedelta(seconds=seconds)
    await user_queries.insert(connection, User(UserId(name), f"{name}@example.org", at))


async def _page(
    connection: AsyncConnection, span: PageSpec | None, *, newest_first: bool = False
) -> list[sa.Row[tuple[str, datetime]]]:
    query = keyset.page(
        sa.select(users.c.id, users.c.created_at), _ORDER, span, newest_first=newest_first
    )
    return list(await connection.execute(query))


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
async def test_pages_cover_all_rows(store: Database, limit: int, newest_first: bool) -> None:
    async with store.write() as connection:
        for number in range(7):
            await _add(connection, f"p{number}", number // 3)  # several came at the same time
        whole = [row.id for row in await _page(connection, None, newest_first=newest_first)]
        seen: list[str] = []
        after = None
        while page := await _page(connection, PageSpec(limit, after), newest_first=newest_first):
            seen += [row.id for row in page]
            after = (page[-1].created_at, page[-1].id)
        assert seen == whole
        assert sorted(whole, reverse=newest_first) == whole


async def test_inserted_and_deleted_rows_hide_no_others(store: Database) -> None:
    async with store.write() as connection:
        for number in range(4):
            await _add(connection, f"p{number}", number)
        first = await _page(connection, PageSpec(2))
        assert [row.id for row in first] == ["p0", "p1"]
        await connection.execute(sa.delete(users).where(users.c.id.in_(["p0", "p1"])))
        await _add(connection, "earlier", -1)
        rest = await _page(connection, PageSpec(9, (first[-1].created_at, first[-1].id)))
        assert [row.id for row in rest] == ["p2", "p3"]
