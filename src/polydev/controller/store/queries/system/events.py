"""Queries that read and prune `events`; `engine/event_outbox.py` writes them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.store.tables import events
from polydev.shared.domain import Event, UserId

PAGE = 100

_PRUNED = "pruned"
"""Kind of the row that replaces a user's pruned events; none after its id are missing."""

_IS_EVENT = events.c.kind != _PRUNED


async def list_after(
    connection: AsyncConnection, user_id: UserId, event_id: int, limit: int = PAGE
) -> list[Event]:
    """List a user's events after an id, oldest first."""
    query = (
        sa.select(events)
        .where(events.c.user_id == user_id, events.c.event_id > event_id, _IS_EVENT)
        .order_by(events.c.event_id)
        .limit(limit)
    )
    return [_event(row) for row in await connection.execute(query)]


async def get_newest_id(connection: AsyncConnection, user_id: UserId) -> int:
    """Return the id of a user's newest event.

    0 if there was none.
    """
    query = sa.select(sa.func.max(events.c.event_id)).where(events.c.user_id == user_id)
    return int((await connection.execute(query)).scalar_one() or 0)


async def is_complete_after(connection: AsyncConnection, user_id: UserId, event_id: int) -> bool:
    """Check that the id existed (or is 0), with nothing pruned since."""
    if event_id > await get_newest_id(connection, user_id):
        return False
    gap = sa.select(events.c.event_id).where(
        events.c.user_id == user_id, events.c.event_id > event_id, events.c.kind == _PRUNED
    )
    return (await connection.execute(gap.limit(1))).one_or_none() is None


async def prune(connection: AsyncConnection, before: datetime, keep: int) -> int:
    """Delete old events, and all but each user's newest `keep`.

    Return their number.
    """
    number = sa.func.row_number().over(
        partition_by=events.c.user_id, order_by=events.c.event_id.desc()
    )
    numbered = sa.select(
        events.c.user_id, events.c.event_id, events.c.at, number.label("number")
    ).where(_IS_EVENT)
    found = numbered.subquery()
    ends = (
        sa.select(found.c.user_id, sa.func.max(found.c.event_id).label("last"))
        .where(sa.or_(found.c.number > keep, found.c.at < before))
        .group_by(found.c.user_id)
    )
    removed = 0
    for row in (await connection.execute(ends)).all():
        own = events.c.user_id == row.user_id
        deleted = sa.delete(events).where(own, events.c.event_id < row.last)
        removed += (await connection.execute(deleted)).rowcount
        mark = sa.update(events).where(own, events.c.event_id == row.last)
        await connection.execute(mark.values(kind=_PRUNED, subject="", data={}))
    return removed


def _event(row: sa.Row[Any]) -> Event:
    return Event(row.event_id, UserId(row.user_id), row.kind, row.subject, row.data, row.at)
