"""Rows of `credentials`: sealed, always. What they say is the vault's to know."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.domain import CredentialId, PersonId, SealedCredential
from polydev.store.tables import credentials


async def put(connection: AsyncConnection, row: SealedCredential) -> None:
    """Store a credential in place of one of the same id: a step that captures may run twice."""
    await connection.execute(
        sa.delete(credentials).where(credentials.c.credential_id == row.credential_id)
    )
    await connection.execute(sa.insert(credentials).values(**asdict(row)))


async def get(connection: AsyncConnection, credential_id: CredentialId) -> SealedCredential | None:
    """The credential of that id."""
    return await _one(connection, credentials.c.credential_id == credential_id)


async def newest_of(
    connection: AsyncConnection, user_id: PersonId, provider: str
) -> SealedCredential | None:
    """The person's live credential for a provider."""
    return await _one(
        connection, credentials.c.user_id == user_id, credentials.c.provider == provider
    )


async def any_without_key_id(connection: AsyncConnection) -> SealedCredential | None:
    """One row that an earlier Node.js controller wrote, if there is any."""
    return await _one(connection, credentials.c.key_id.is_(None))


async def forget(connection: AsyncConnection, credential_id: CredentialId) -> None:
    """Delete a credential; done also when there is none."""
    await connection.execute(
        sa.delete(credentials).where(credentials.c.credential_id == credential_id)
    )


async def forget_others(connection: AsyncConnection, keep: CredentialId) -> None:
    """Delete what the credential `keep` replaces: a login has one live owner."""
    kept = sa.select(credentials.c.user_id, credentials.c.provider).where(
        credentials.c.credential_id == keep
    )
    row = (await connection.execute(kept)).one_or_none()
    if row is None:
        return
    await connection.execute(
        sa.delete(credentials).where(
            credentials.c.user_id == row.user_id,
            credentials.c.provider == row.provider,
            credentials.c.credential_id != keep,
        )
    )


async def _one(
    connection: AsyncConnection, *conditions: sa.ColumnElement[bool]
) -> SealedCredential | None:
    query = (
        sa.select(credentials)
        .where(*conditions)
        .order_by(credentials.c.created_at.desc(), credentials.c.credential_id)
        .limit(1)
    )
    row = (await connection.execute(query)).one_or_none()
    values: dict[str, Any] | None = None if row is None else dict(row._mapping)
    return None if values is None else SealedCredential(**values)
