"""Rows of `identities`: by which names an OpenID provider vouches for whom."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.store.tables import identities
from polydev.shared.domain import UserId, now


@dataclass(frozen=True, slots=True)
class Identity:
    """How an OpenID provider names somebody."""

    issuer: str
    subject: str


async def find_user_id(connection: AsyncConnection, identity: Identity) -> UserId | None:
    """Who that is here."""
    row = await connection.execute(
        sa.select(identities.c.user_id).where(
            identities.c.issuer == identity.issuer, identities.c.subject == identity.subject
        )
    )
    found = row.scalar_one_or_none()
    return None if found is None else UserId(found)


async def insert(connection: AsyncConnection, identity: Identity, user_id: UserId) -> None:
    """From now on that identity is this person."""
    await connection.execute(
        sa.insert(identities).values(
            issuer=identity.issuer, subject=identity.subject, user_id=user_id, created_at=now()
        )
    )
