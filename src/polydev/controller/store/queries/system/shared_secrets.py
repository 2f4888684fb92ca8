"""Queries of `shared_secrets`: secrets of all controllers, sealed by the vault."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.store.tables import shared_secrets
from polydev.shared.domain import SharedSecret


async def find(connection: AsyncConnection, name: str) -> SharedSecret | None:
    """Return a secret by its name."""
    query = sa.select(shared_secrets).where(shared_secrets.c.name == name)
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else SharedSecret(**row._mapping)


async def insert_if_absent(connection: AsyncConnection, secret: SharedSecret) -> None:
    """Insert a secret unless another controller was faster."""
    values: Mapping[str, Any] = asdict(secret)
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    await connection.execute(
        insert(shared_secrets).values(**values).on_conflict_do_nothing(index_elements=["name"])
    )


async def list_all(connection: AsyncConnection) -> list[SharedSecret]:
    """List all secrets by name."""
    rows = await connection.execute(sa.select(shared_secrets).order_by(shared_secrets.c.name))
    return [SharedSecret(**row._mapping) for row in rows]


async def update_sealed(connection: AsyncConnection, old: SharedSecret, new: SharedSecret) -> bool:
    """Replace the sealed data. False if it was changed concurrently."""
    changed = await connection.execute(
        sa.update(shared_secrets)
        .where(
            shared_secrets.c.name == old.name,
            shared_secrets.c.salt == old.salt,
            shared_secrets.c.tag == old.tag,
        )
        .values(sealed=new.sealed, iv=new.iv, tag=new.tag, salt=new.salt, key_id=new.key_id)
    )
    return bool(changed.rowcount)
