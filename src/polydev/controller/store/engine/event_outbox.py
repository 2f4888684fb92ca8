"""Emit events inside a transaction; write them just before its commit.

Query modules emit in the transaction that makes the change, so that no caller forgets it.
`Database.write` calls `write_emitted` last. Writing last is what makes event ids trustworthy for
readers: see docs/decisions/0024.

An event only tells a client to read something again: a few words, no URL, no secret.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.store.engine import locks
from polydev.controller.store.tables import events, users
from polydev.shared.domain import UserId, now

MAX_VALUE_CHARACTERS = 64


@dataclass(slots=True)
class _Emitted:
    kind: str
    subject: str
    data: dict[str, str]


_emitted: WeakKeyDictionary[sa.Connection, dict[UserId, list[_Emitted]]] = WeakKeyDictionary()


async def emit(
    connection: AsyncConnection, user_id: UserId, kind: str, subject: str, /, **data: str | None
) -> None:
    """Tell that something of a person's changed, in the transaction that changes it.

    What changes twice in one transaction is told once, with the last words.
    """
    words = {name: value[:MAX_VALUE_CHARACTERS] for name, value in data.items() if value}
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
        await locks.acquire(connection, "events", user_id)
    at = now()
    for user_id in people:
        for it in told[user_id]:  # one by one: each draws its id in this order
            await connection.execute(_insert(user_id, it, at))


def _key(connection: AsyncConnection) -> sa.Connection:
    if connection.sync_connection is None:
        raise RuntimeError("events are emitted in a transaction")
    return connection.sync_connection


def _insert(user_id: UserId, told: _Emitted, at: datetime) -> sa.Insert:
    """For a person who is there: what tells of somebody's end finds nobody to tell."""
    values = {"kind": told.kind, "subject": told.subject, "data": told.data, "at": at}
    row = [sa.literal(value, events.c[name].type) for name, value in values.items()]
    query = sa.select(users.c.id, *row).where(users.c.id == user_id)
    return sa.insert(events).from_select(["user_id", *values], query)
