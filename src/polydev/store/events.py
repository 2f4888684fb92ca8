"""Rows of `events`: what of a person's changed, for whoever watches.

The query modules emit in the transaction that makes the change, so that no caller forgets it;
`Database.write` writes what was emitted just before the commit (`write_emitted`). That late moment
is what lets a reader trust the ids: see docs/decisions/0024. `api/events.py` reads.

An event is a hint to look again, never the thing itself: a few words, no URL, no secret.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.domain import Event, PersonId, now
from polydev.store import locks
from polydev.store.tables import events, users

PAGE = 100
MAX_WORD_CHARACTERS = 64

_PRUNED = "pruned"
"""The kind of the row that stands where a person's older events were: from its id on, nothing is
missing."""

_IS_EVENT = events.c.kind != _PRUNED


@dataclass(slots=True)
class _Emitted:
    kind: str
    subject: str
    data: dict[str, str]


_emitted: WeakKeyDictionary[sa.Connection, dict[PersonId, list[_Emitted]]] = WeakKeyDictionary()


async def emit(
    connection: AsyncConnection, user_id: PersonId, kind: str, subject: str, /, **data: str | None
) -> None:
    """Tell that something of a person's changed, in the transaction that changes it.

    What changes twice in one transaction is told once, with the last words.
    """
    words = {name: value[:MAX_WORD_CHARACTERS] for name, value in data.items() if value}
    theirs = _emitted.setdefault(_key(connection), {}).setdefault(user_id, [])
    for known in theirs:
        if (known.kind, known.subject) == (kind, subject):
            known.data.update(words)
            return
    theirs.append(_Emitted(kind, subject, words))


async def write_emitted(connection: AsyncConnection) -> None:
    """Write what was emitted in this transaction, as the last thing before its commit.

    Whoever reads a person's event has read all those with lower ids: ids are drawn, and committed,
    by one transaction of that person at a time. The locks come last and in order, so nobody who
    holds one waits for a row. People who were deleted in the transaction are told nothing.
    """
    told = _emitted.pop(_key(connection), None)
    if not told:
        return
    people = sorted(told)
    for user_id in people:
        await locks.hold(connection, "events", user_id)
    at = now()
    for user_id in people:
        for it in told[user_id]:  # one by one: each draws its id in this order
            await connection.execute(_insert(user_id, it, at))


async def after(
    connection: AsyncConnection, user_id: PersonId, event_id: int, limit: int = PAGE
) -> list[Event]:
    """A person's events after an id, the oldest first."""
    query = (
        sa.select(events)
        .where(events.c.user_id == user_id, events.c.event_id > event_id, _IS_EVENT)
        .order_by(events.c.event_id)
        .limit(limit)
    )
    return [_event(row) for row in await connection.execute(query)]


async def newest(connection: AsyncConnection, user_id: PersonId) -> int:
    """The id of the person's newest event; 0 if there never was one."""
    query = sa.select(sa.func.max(events.c.event_id)).where(events.c.user_id == user_id)
    return int((await connection.execute(query)).scalar_one() or 0)


async def is_whole_after(connection: AsyncConnection, user_id: PersonId, event_id: int) -> bool:
    """Whether that id was the person's once, or 0, and nothing after it has been pruned."""
    if event_id > await newest(connection, user_id):
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


def _key(connection: AsyncConnection) -> sa.Connection:
    if connection.sync_connection is None:
        raise RuntimeError("events are emitted in a transaction")
    return connection.sync_connection


def _insert(user_id: PersonId, told: _Emitted, at: datetime) -> sa.Insert:
    """For a person who is there: what tells of somebody's end finds nobody to tell."""
    values = {"kind": told.kind, "subject": told.subject, "data": told.data, "at": at}
    row = [sa.literal(value, events.c[name].type) for name, value in values.items()]
    query = sa.select(users.c.id, *row).where(users.c.id == user_id)
    return sa.insert(events).from_select(["user_id", *values], query)


def _event(row: sa.Row[Any]) -> Event:
    return Event(row.event_id, PersonId(row.user_id), row.kind, row.subject, row.data, row.at)
