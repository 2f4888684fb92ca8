"""Rows of `view_tickets`: who was given one look into a browser machine, for a moment.

A row is gone with the look that it was for, so that no ticket counts twice, at whichever
controller. Secrets are kept as hashes.
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
    """A ticket as it is kept; `holder` is the sign-in or token that asked for it."""

    secret_hash: str
    user_id: UserId
    session_id: SessionId
    holder: str
    expires_at: datetime


async def insert(connection: AsyncConnection, ticket: TicketRow, at: datetime) -> None:
    """Keep a ticket, and forget everybody's that nobody came with in time."""
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
    """How many of a person's hold."""
    query = sa.select(sa.func.count()).where(
        tickets.c.user_id == user_id, tickets.c.expires_at > at
    )
    return int((await connection.execute(query)).scalar_one())


async def pop(connection: AsyncConnection, secret_hash: str) -> TicketRow | None:
    """The ticket of that hash, which is gone with this; None if there is none."""
    taken = await connection.execute(
        sa.delete(tickets).where(tickets.c.secret_hash == secret_hash).returning(*tickets.c)
    )
    row = taken.one_or_none()
    return None if row is None else TicketRow(**row._mapping)
