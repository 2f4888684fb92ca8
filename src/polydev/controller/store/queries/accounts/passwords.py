"""Queries of `passwords`: argon2id hashes, at most one per user."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.store.tables import passwords
from polydev.shared.domain import UserId, now


async def find_hash(connection: AsyncConnection, user_id: UserId) -> str | None:
    """Return the hash of a user's password; None if they have none."""
    query = sa.select(passwords.c.hash).where(passwords.c.user_id == user_id)
    return (await connection.execute(query)).scalar_one_or_none()


async def insert(connection: AsyncConnection, user_id: UserId, password_hash: str) -> None:
    """Insert a user's first password."""
    values = {"user_id": user_id, "hash": password_hash, "changed_at": now()}
    await connection.execute(sa.insert(passwords).values(values))


async def update(
    connection: AsyncConnection, user_id: UserId, old_hash: str, new_hash: str
) -> bool:
    """Replace a password. False if it was changed concurrently."""
    changed = await connection.execute(
        sa.update(passwords)
        .where(passwords.c.user_id == user_id, passwords.c.hash == old_hash)
        .values(hash=new_hash, changed_at=now())
    )
    return changed.rowcount == 1


async def lock_and_rehash(
    connection: AsyncConnection, user_id: UserId, current_hash: str, renewed_hash: str | None
) -> bool:
    """Lock the row, and store a new hash of the same password.

    False if the password was changed concurrently.
    """
    updated = await connection.execute(
        sa.update(passwords)
        .where(passwords.c.user_id == user_id, passwords.c.hash == current_hash)
        .values(hash=renewed_hash or current_hash)
    )
    return updated.rowcount == 1


async def upsert(connection: AsyncConnection, user_id: UserId, password_hash: str) -> None:
    """Set a user's password."""
    await connection.execute(sa.delete(passwords).where(passwords.c.user_id == user_id))
    await insert(connection, user_id, password_hash)
