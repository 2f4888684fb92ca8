"""Rows of `passwords`: argon2id hashes, one a person at most."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.store.tables import passwords
from polydev.shared.domain import UserId, now


async def find_hash(connection: AsyncConnection, user_id: UserId) -> str | None:
    """The hash of a person's password; None for whoever signs in without one."""
    wanted = sa.select(passwords.c.hash).where(passwords.c.user_id == user_id)
    return (await connection.execute(wanted)).scalar_one_or_none()


async def insert(connection: AsyncConnection, user_id: UserId, password_hash: str) -> None:
    """The first password of a person."""
    values = {"user_id": user_id, "hash": password_hash, "changed_at": now()}
    await connection.execute(sa.insert(passwords).values(values))


async def update(
    connection: AsyncConnection, user_id: UserId, old_hash: str, new_hash: str
) -> bool:
    """Another password in the old one's place. False: somebody was faster."""
    changed = await connection.execute(
        sa.update(passwords)
        .where(passwords.c.user_id == user_id, passwords.c.hash == old_hash)
        .values(hash=new_hash, changed_at=now())
    )
    return changed.rowcount == 1


async def lock_and_rehash(
    connection: AsyncConnection, user_id: UserId, kept_hash: str, renewed_hash: str | None
) -> bool:
    """The same password, perhaps hashed anew. False: it has been changed meanwhile.

    Until the transaction's end nobody can change it.
    """
    held = await connection.execute(
        sa.update(passwords)
        .where(passwords.c.user_id == user_id, passwords.c.hash == kept_hash)
        .values(hash=renewed_hash or kept_hash)
    )
    return held.rowcount == 1


async def upsert(connection: AsyncConnection, user_id: UserId, password_hash: str) -> None:
    """A person's password, whether they had one or not."""
    await connection.execute(sa.delete(passwords).where(passwords.c.user_id == user_id))
    await insert(connection, user_id, password_hash)
