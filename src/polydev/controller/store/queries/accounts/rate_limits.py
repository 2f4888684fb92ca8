"""Queries of `rate_limits`: token buckets shared by all controllers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.store.tables import rate_limits

_REFILL_TIME = timedelta(days=1)
"""A bucket unused for this long is full, as is one without a row."""

_PRUNED_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class Bucket:
    """A token bucket: its capacity and refill rate."""

    key: str
    capacity: float
    per_s: float


async def take(connection: AsyncConnection, buckets: Sequence[Bucket], at: datetime) -> float:
    """Take a token from every bucket, or from none.

    Return the seconds to wait.

    0 means that they were taken. On PostgreSQL, the rows stay locked until the transaction ends.
    """
    ordered = sorted(buckets, key=lambda bucket: bucket.key)  # a fixed order avoids deadlocks
    fresh = [bucket.key for bucket in ordered if await _lock(connection, bucket, at)]
    left = {bucket: await _tokens_left(connection, bucket, at) for bucket in ordered}
    await _prune_full(connection, [bucket.key for bucket in ordered], at)
    wait_s = max((1 - left[bucket]) / bucket.per_s for bucket in ordered)
    if wait_s > 0:
        # A refused request leaves no rows: random names must not fill the table.
        await connection.execute(sa.delete(rate_limits).where(rate_limits.c.key.in_(fresh)))
        return wait_s
    for bucket in ordered:
        await connection.execute(
            sa.update(rate_limits)
            .where(rate_limits.c.key == bucket.key)
            .values(left=left[bucket] - 1, at=at)
        )
    return 0


async def _lock(connection: AsyncConnection, bucket: Bucket, at: datetime) -> bool:
    """Lock a bucket's row, creating it if missing.

    Return whether it is new.

    A row that another controller has just inserted is not locked by us yet. Continuing without the
    lock could deadlock, so retry: each round, some transaction has ended.
    """
    while (await connection.execute(_locked(bucket))).one_or_none() is None:
        if await _insert_full(connection, bucket, at):
            return True
    return False


async def _tokens_left(connection: AsyncConnection, bucket: Bucket, at: datetime) -> float:
    """Return the tokens in a bucket that has a row."""
    row = (await connection.execute(_locked(bucket))).one()
    # Clocks of controllers can differ slightly.
    elapsed_s: float = max(0.0, (at - row.at).total_seconds())
    filled: float = row.left + elapsed_s * bucket.per_s
    return min(bucket.capacity, filled)


async def _prune_full(connection: AsyncConnection, but: Sequence[str], at: datetime) -> None:
    """Delete rows of full buckets, except locked ones and our own."""
    full = (
        sa.select(rate_limits.c.key)
        .where(rate_limits.c.at < at - _REFILL_TIME, rate_limits.c.key.not_in(but))
        .limit(_PRUNED_AT_ONCE)
        .with_for_update(skip_locked=True)
    )
    await connection.execute(sa.delete(rate_limits).where(rate_limits.c.key.in_(full)))


def _locked(bucket: Bucket) -> sa.Select[Any]:
    return sa.select(rate_limits).where(rate_limits.c.key == bucket.key).with_for_update()


async def _insert_full(connection: AsyncConnection, bucket: Bucket, at: datetime) -> bool:
    """Insert a full bucket. False if another controller was faster."""
    try:
        async with connection.begin_nested():
            await connection.execute(
                sa.insert(rate_limits).values(key=bucket.key, left=bucket.capacity, at=at)
            )
    except IntegrityError:
        return False
    return True
