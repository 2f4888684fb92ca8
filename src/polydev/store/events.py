"""Rows of `events`: what of a person's changed, for whoever watches. Written with the change."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.domain import PersonId, now
from polydev.store.tables import events


async def emit(
    connection: AsyncConnection, user_id: PersonId, kind: str, subject: str, **data: str
) -> None:
    """Tell that something of a person's changed, in the transaction that changes it."""
    await connection.execute(
        sa.insert(events).values(user_id=user_id, kind=kind, subject=subject, data=data, at=now())
    )
