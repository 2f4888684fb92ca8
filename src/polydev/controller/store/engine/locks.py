"""Named locks that a transaction holds until it ends.

On SQLite, writers take turns anyway. On PostgreSQL, two transactions could both read that something
is free, and both take it. So a transaction that decides by what it reads takes a lock first.
"""

from __future__ import annotations

import hashlib

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection


async def acquire(connection: AsyncConnection, *name: str) -> None:
    """Wait for the lock and hold it until the transaction ends.

    The name says what it protects: `acquire(connection, "machines", user_id)`. Take several locks
    in the same order everywhere.
    """
    if connection.dialect.name == "postgresql":
        await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(lock_id(*name))))


def lock_id(*name: str) -> int:
    """Return PostgreSQL's 64-bit id of a lock."""
    digest = hashlib.blake2b("\0".join(name).encode(), digest_size=8, person=b"polydev").digest()
    return int.from_bytes(digest, "big", signed=True)
