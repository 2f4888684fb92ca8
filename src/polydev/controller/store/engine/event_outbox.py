"""Emit events inside a transaction; write them just before its commit.

Query modules emit in the transaction that makes the change, so that no caller forgets it.
`Database.write` calls `write_emitted` last. Writing last is what makes event ids trustworthy for
readers: see docs/decisions/0024.

An event only prompts a client to read a resource again. It holds no URL and no secret.
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
    """Emit an event in the transaction that makes the change.

    Two changes of one resource in a transaction become one event with the latest values.
    """
    texts = {name: value[:MAX_VALUE_CHARACTERS] for name, value in data.items() if value}
    pending = _emitted.setdefault(_key(connection), {}).setdefault(user_id, [])
    for known in pending:
        if (known.kind, known.subject) == (kind, subject):
            known.data.update(texts)
            return
    pending.append(_Emitted(kind, subject, texts))


async def write_emitted(connection: AsyncConnection) -> None:
    """Write the emitted events, last before the transaction's commit.

    A reader that sees an event has seen all events of that user with lower ids, since one
    transaction per user at a time draws ids and commits. Locks come last and in order, so no holder
    waits for a row. Users who were deleted in the transaction get no events.
    """
    emitted = _emitted.pop(_key(connection), None)
    if not emitted:
        return
    user_ids = sorted(emitted)
    for user_id in user_ids:
        await locks.acquire(connection, "events", user_id)
    at = now()
    for user_id in user_ids:
        for it in emitted[user_id]:  # one by one, so that ids follow this order
            await connection.execute(_insert(user_id, it, at))


def _key(connection: AsyncConnection) -> sa.Connection:
    if connection.sync_connection is None:
        raise RuntimeError("events can be emitted only in a transaction")
    return connection.sync_connection


def _insert(user_id: UserId, emitted: _Emitted, at: datetime) -> sa.Insert:
    """Insert only if the user still exists: a deletion also emits events."""
    values = {"kind": emitted.kind, "subject": emitted.subject, "data": emitted.data, "at": at}
    row = [sa.literal(value, events.c[name].type) for name, value in values.items()]
    query = sa.select(users.c.id, *row).where(users.c.id == user_id)
    return sa.insert(events).from_select(["user_id", *values], query)
