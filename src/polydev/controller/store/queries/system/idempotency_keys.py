"""Rows of `idempotency_keys`: requests that were sent with a key, and what they were answered.

A row without a status is a request that runs since `taken_at`, or whose controller died over it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.store.tables import idempotency_keys as keys
from polydev.shared.domain import UserId
from polydev.shared.errors import TooManyRequests

RETENTION = timedelta(hours=24)
MAX_KEYS = 2000
"""How many keys of a person are kept at a time."""
_FULL_FOR_S = 600


@dataclass(frozen=True, slots=True)
class KeyClaim:
    """A request that holds a key since `at`; what it was, only as a hash."""

    user_id: UserId
    key: str
    request_hash: str
    at: datetime
    first_at: datetime
    """When the first request with this key took it."""


@dataclass(frozen=True, slots=True)
class PreviousRequest:
    """The request that came with the key before. Without a status it is not answered yet."""

    request_hash: str
    status: int | None
    body: str | None


async def take(
    connection: AsyncConnection, taken: KeyClaim, *, given_up: datetime
) -> KeyClaim | PreviousRequest:
    """Take a key if it is free, or held without an answer since before `given_up`.

    Raises TooManyRequests if the person has as many as are kept.
    """
    theirs = _key_of(taken)
    row = (await connection.execute(sa.select(keys).where(*theirs))).one_or_none()
    if row is None:
        return await _take_new(connection, taken)
    before = PreviousRequest(row.request_hash, row.status, row.body)
    if row.status is not None or row.taken_at >= given_up:
        return before
    if row.request_hash != taken.request_hash:
        return before
    result = await connection.execute(
        sa.update(keys)
        .where(*theirs, keys.c.status.is_(None), keys.c.taken_at == row.taken_at)
        .values(taken_at=taken.at)
    )
    return replace(taken, first_at=row.created_at) if result.rowcount else before


async def store_response(
    connection: AsyncConnection, taken: KeyClaim, status: int, body: str
) -> None:
    """Keep what the request was answered, if it still holds its key."""
    await connection.execute(sa.update(keys).where(*_held(taken)).values(status=status, body=body))


async def release(connection: AsyncConnection, taken: KeyClaim) -> None:
    """Let go of a key whose request came to nothing, if it still holds it."""
    await connection.execute(sa.delete(keys).where(*_held(taken)))


async def prune(
    connection: AsyncConnection, before: datetime, user_id: UserId | None = None
) -> None:
    """Forget what is older than that: of one person, or of everybody."""
    whose = () if user_id is None else (keys.c.user_id == user_id,)
    await connection.execute(sa.delete(keys).where(keys.c.created_at < before, *whose))


async def _take_new(connection: AsyncConnection, taken: KeyClaim) -> KeyClaim | PreviousRequest:
    whose = sa.select(sa.func.count()).where(keys.c.user_id == taken.user_id)
    if (await connection.scalar(whose) or 0) >= MAX_KEYS:
        raise TooManyRequests(
            f"{MAX_KEYS} requests with an Idempotency-Key within 24 hours are kept, and no more",
            hint="Ask without a key, or later",
            retry_after_s=_FULL_FOR_S,
        )
    try:
        async with connection.begin_nested():
            await connection.execute(
                sa.insert(keys).values(
                    user_id=taken.user_id,
                    key=taken.key,
                    request_hash=taken.request_hash,
                    taken_at=taken.at,
                    created_at=taken.first_at,
                )
            )
    except IntegrityError:  # another controller was faster
        return PreviousRequest(taken.request_hash, None, None)
    return taken


def _key_of(taken: KeyClaim) -> tuple[sa.ColumnElement[bool], ...]:
    return keys.c.user_id == taken.user_id, keys.c.key == taken.key


def _held(taken: KeyClaim) -> tuple[sa.ColumnElement[bool], ...]:
    return *_key_of(taken), keys.c.status.is_(None), keys.c.taken_at == taken.at
