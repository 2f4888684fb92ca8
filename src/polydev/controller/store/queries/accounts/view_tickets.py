"""Queries of `view_tickets`: short-lived tickets for live views.

Redeeming deletes the row, so no ticket is valid twice, at any controller. Secrets are stored as
hashes.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.store.tables import view_tickets as tickets
from polydev.shared.domain import SessionId, UserId


@dataclass(frozen=True, slots=True)
class TicketRow:
    """A stored ticket; `holder` is the sign-in or token that requested it."""

    secret_hash: str
    user_id: UserId
    session_id: SessionId
    holder: str
    expires_at: datetime


async def insert(connection: AsyncConnection, ticket: TicketRow, at: datetime) -> None:
    """Insert a ticket, and delete all expired ones."""
    await connection.execute(sa.delete(tickets).where(tickets.c.expires_at <= at))
    await connection.execute(
        sa.insert(tickets).values(
            secret_hash=ticket.secret_hash,
            user_id=ticket.user_id,
            session_id=ticket.session_id,
            holder=ticket.holder,
            expires_at=ticket.expires_at,
        )
    )


async def count_for_user(connection: AsyncConnection, user_id: UserId, at: datetime) -> int:
    """Count a user's valid tickets."""
    query = sa.select(sa.func.count()).where(
        tickets.c.user_id == user_id, tickets.c.expires_at > at
    )
    return int((await connection.execute(query)).scalar_one())


async def pop(connection: AsyncConnection, secret_hash: str) -> TicketRow | None:
    """Delete and return a ticket; None if there is none."""
    taken = await connection.execute(
        sa.delete(tickets).where(tickets.c.secret_hash == secret_hash).returning(*tickets.c)
    )
    row = taken.one_or_none()
    return None if row is None else TicketRow(**row._mapping)
