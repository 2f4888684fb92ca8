"""Queries of `idempotency_keys`: requests with a key, and their responses.

A row without a status is a request that runs since `taken_at`, or whose controller died.
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
"""Stored keys per user."""
_FULL_FOR_S = 600


@dataclass(frozen=True, slots=True)
class KeyClaim:
    """A request that holds a key since `at`.

    Its content is only a hash.
    """

    user_id: UserId
    key: str
    request_hash: str
    at: datetime
    first_at: datetime
    """When the first request with this key claimed it."""


@dataclass(frozen=True, slots=True)
class PreviousRequest:
    """The earlier request with the key.

    Without a status, it is still running.
    """

    request_hash: str
    status: int | None
    body: str | None


async def take(
    connection: AsyncConnection, claim: KeyClaim, *, abandoned_before: datetime
) -> KeyClaim | PreviousRequest:
    """Claim a key if it is free or its request was abandoned.

    Raises TooManyRequests if the user has too many keys.
    """
    own_key = _key_of(claim)
    row = (await connection.execute(sa.select(keys).where(*own_key))).one_or_none()
    if row is None:
        return await _take_new(connection, claim)
    previous = PreviousRequest(row.request_hash, row.status, row.body)
    if row.status is not None or row.taken_at >= abandoned_before:
        return previous
    if row.request_hash != claim.request_hash:
        return previous
    result = await connection.execute(
        sa.update(keys)
        .where(*own_key, keys.c.status.is_(None), keys.c.taken_at == row.taken_at)
        .values(taken_at=claim.at)
    )
    return replace(claim, first_at=row.created_at) if result.rowcount else previous


async def store_response(
    connection: AsyncConnection, claim: KeyClaim, status: int, body: str
) -> None:
    """Store the response if the request still holds its key."""
    await connection.execute(sa.update(keys).where(*_held(claim)).values(status=status, body=body))


async def release(connection: AsyncConnection, claim: KeyClaim) -> None:
    """Release the key of a failed request if it still holds it."""
    await connection.execute(sa.delete(keys).where(*_held(claim)))


async def prune(
    connection: AsyncConnection, before: datetime, user_id: UserId | None = None
) -> None:
    """Delete keys of a user, or of all users, that are older than `before`."""
    owned = () if user_id is None else (keys.c.user_id == user_id,)
    await connection.execute(sa.delete(keys).where(keys.c.created_at < before, *owned))


async def _take_new(connection: AsyncConnection, claim: KeyClaim) -> KeyClaim | PreviousRequest:
    count = sa.select(sa.func.count()).where(keys.c.user_id == claim.user_id)
    if (await connection.scalar(count) or 0) >= MAX_KEYS:
        raise TooManyRequests(
            f"You have used {MAX_KEYS} idempotency keys within 24 hours",
            hint="Retry without a key, or later",
            retry_after_s=_FULL_FOR_S,
        )
    try:
        async with connection.begin_nested():
            await connection.execute(
                sa.insert(keys).values(
                    user_id=claim.user_id,
                    key=claim.key,
                    request_hash=claim.request_hash,
                    taken_at=claim.at,
                    created_at=claim.first_at,
                )
            )
    except IntegrityError:  # another controller was faster
        return PreviousRequest(claim.request_hash, None, None)
    return claim


def _key_of(claim: KeyClaim) -> tuple[sa.ColumnElement[bool], ...]:
    return keys.c.user_id == claim.user_id, keys.c.key == claim.key


def _held(claim: KeyClaim) -> tuple[sa.ColumnElement[bool], ...]:
    return *_key_of(claim), keys.c.status.is_(None), keys.c.taken_at == claim.at
