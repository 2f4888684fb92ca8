"""Locks that a transaction holds until it ends: for reading, deciding, and writing by it.

On SQLite writers take turns anyway. On PostgreSQL they do not: two transactions may both read that
a thing is free, and both take it. Whoever decides by what was read holds the thing's name first.
"""

from __future__ import annotations

import hashlib

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection


async def acquire(connection: AsyncConnection, *name: str) -> None:
    """Wait until no other transaction holds that name, and hold it until this one ends.

    Names are words that say what is decided about: `hold(connection, "machines", user_id)`. Who
    holds several takes them in one order everywhere.
    """
    if connection.dialect.name == "postgresql":
        await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(lock_id(*name))))


def lock_id(*name: str) -> int:
    """The 64-bit number that PostgreSQL knows a lock by."""
    digest = hashlib.blake2b("\0".join(name).encode(), digest_size=8, person=b"polydev").digest()
    return int.from_bytes(digest, "big", signed=True)
