"""Rows of `vault_keys`: which keys this database was sealed with. Asked by the vault only."""

from __future__ import annotations

from dataclasses import asdict

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.domain import VaultKey
from polydev.store.tables import vault_keys


async def every(connection: AsyncConnection) -> list[VaultKey]:
    """All keys, the newest first."""
    rows = await connection.execute(sa.select(vault_keys).order_by(vault_keys.c.created_at.desc()))
    return [VaultKey(**row._mapping) for row in rows]


async def add(connection: AsyncConnection, key: VaultKey) -> None:
    """A key that has not sealed anything here before."""
    await connection.execute(sa.insert(vault_keys).values(**asdict(key)))
