"""Queries of `vault_keys`: encryption keys and what each of them seals."""

from __future__ import annotations

from dataclasses import asdict

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.store.engine.locks import acquire
from polydev.controller.store.tables import credentials, shared_secrets, vault_keys
from polydev.shared.domain import KeyUse, VaultKey


async def lock(connection: AsyncConnection) -> None:
    """Lock the keys until the transaction ends.

    Two controllers that start at the same time must not both add a key.
    """
    await acquire(connection, "vault-keys")


async def list_all(connection: AsyncConnection) -> list[VaultKey]:
    """List all keys, newest first."""
    rows = await connection.execute(sa.select(vault_keys).order_by(vault_keys.c.created_at.desc()))
    return [VaultKey(**row._mapping) for row in rows]


async def insert(connection: AsyncConnection, key: VaultKey) -> None:
    """Insert a key."""
    await connection.execute(sa.insert(vault_keys).values(**asdict(key)))


async def delete(connection: AsyncConnection, key_id: str) -> None:
    """Delete a key. The caller has checked that it seals nothing."""
    await connection.execute(sa.delete(vault_keys).where(vault_keys.c.key_id == key_id))


async def get_uses(connection: AsyncConnection) -> dict[str | None, KeyUse]:
    """Count what each key seals.

    None stands for rows of the former controller.
    """
    of_credentials = await _counts(connection, credentials, credentials.c.revoked_at.is_(None))
    of_secrets = await _counts(connection, shared_secrets)
    return {
        key_id: KeyUse(of_credentials.get(key_id, 0), of_secrets.get(key_id, 0))
        for key_id in sorted({*of_credentials, *of_secrets}, key=str)
    }


async def _counts(
    connection: AsyncConnection, table: sa.Table, *conditions: sa.ColumnElement[bool]
) -> dict[str | None, int]:
    query = sa.select(table.c.key_id, sa.func.count()).where(*conditions).group_by(table.c.key_id)
    return {row[0]: row[1] for row in await connection.execute(query)}
