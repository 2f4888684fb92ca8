"""Rows of `events`: read and prune them. `engine/event_outbox.py` writes them.

`api/routes/system/events.py` streams them to clients.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.store.tables import events
from polydev.shared.domain import Event, UserId

PAGE = 100

_PRUNED = "pruned"
"""The kind of the row that stands where a person's older events were: from its id on, nothing is
missing."""

_IS_EVENT = events.c.kind != _PRUNED


async def list_after(
    connection: AsyncConnection, user_id: UserId, event_id: int, limit: int = PAGE
) -> list[Event]:
    """A person's events after an id, the oldest first."""
    query = (
        sa.select(events)
        .where(events.c.user_id == user_id, events.c.event_id > event_id, _IS_EVENT)
        .order_by(events.c.event_id)
        .limit(limit)
    )
    return [_event(row) for row in await connection.execute(query)]


async def get_newest_id(connection: AsyncConnection, user_id: UserId) -> int:
    """The id of the person's newest event; 0 if there never was one."""
    query = sa.select(sa.func.max(events.c.event_id)).where(events.c.user_id == user_id)
    return int((await connection.execute(query)).scalar_one() or 0)


async def is_complete_after(connection: AsyncConnection, user_id: UserId, event_id: int) -> bool:
    """Whether that id was the person's once, or 0, and nothing after it has been pruned."""
    if event_id > await get_newest_id(connection, user_id):
        return False
    gap = sa.select(events.c.event_id).where(
        events.c.user_id == user_id, events.c.event_id > event_id, events.c.kind == _PRUNED
    )
    return (await connection.execute(gap.limit(1))).one_or_none() is None


async def prune(connection: AsyncConnection, before: datetime, keep: int) -> int:
    """Remove events older than that, and all but each person's newest `keep`. How many."""
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
        theirs = events.c.user_id == row.user_id
        gone = sa.delete(events).where(theirs, events.c.event_id < row.last)
        removed += (await connection.execute(gone)).rowcount
        mark = sa.update(events).where(theirs, events.c.event_id == row.last)
        await connection.execute(mark.values(kind=_PRUNED, subject="", data={}))
    return removed


def _event(row: sa.Row[Any]) -> Event:
    return Event(row.event_id, UserId(row.user_id), row.kind, row.subject, row.data, row.at)
