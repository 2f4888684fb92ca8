"""Queries of `identities`: OpenID identities of users."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.store.tables import identities
from polydev.shared.domain import UserId, now


@dataclass(frozen=True, slots=True)
class Identity:
    """The name of a user at an OpenID provider."""

    issuer: str
    subject: str


async def find_user_id(connection: AsyncConnection, identity: Identity) -> UserId | None:
    """Return the user of an identity."""
    row = await connection.execute(
        sa.select(identities.c.user_id).where(
            identities.c.issuer == identity.issuer, identities.c.subject == identity.subject
        )
    )
    found = row.scalar_one_or_none()
    return None if found is None else UserId(found)


async def insert(connection: AsyncConnection, identity: Identity, user_id: UserId) -> None:
    """Link an identity to a user."""
    await connection.execute(
        sa.insert(identities).values(
            issuer=identity.issuer, subject=identity.subject, user_id=user_id, created_at=now()
        )
    )
