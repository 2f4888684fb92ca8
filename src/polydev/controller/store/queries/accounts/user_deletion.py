"""Delete a user: all their rows in all tables, in one transaction.

The tables are found by their foreign keys, so that a new table is included automatically. The audit
log stays; it holds only ids of users.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.store.queries.accounts import users as user_queries
from polydev.controller.store.tables import (
    api_tokens,
    auth_sessions,
    invitations,
    metadata,
    rate_limits,
    session_steps,
    sign_ins,
    users,
    vms,
)
from polydev.shared.domain import User, UserId


async def mark_deleting(connection: AsyncConnection, user_id: UserId, at: datetime) -> None:
    """Mark a user as being deleted; delete sign-ins and tokens at once.

    A repeated call keeps the first time.
    """
    since = sa.func.coalesce(users.c.deleting_at, at)
    await connection.execute(
        sa.update(users).where(users.c.id == user_id).values(deleting_at=since)
    )
    for table in (sign_ins, api_tokens):
        await connection.execute(sa.delete(table).where(table.c.user_id == user_id))


async def list_deleting(connection: AsyncConnection) -> list[User]:
    """List users that are being deleted."""
    query = sa.select(users.c.id).where(users.c.deleting_at.is_not(None))
    found = [await user_queries.find(connection, row.id) for row in await connection.execute(query)]
    return [user for user in found if user is not None]


async def is_ready_to_delete(connection: AsyncConnection, user_id: UserId) -> bool:
    """Check that the user has no live sessions and no machines."""
    live = sa.exists().where(auth_sessions.c.user_id == user_id, auth_sessions.c.ended_at.is_(None))
    there = sa.exists().where(vms.c.user_id == user_id, vms.c.status != "destroyed")
    return not await connection.scalar(sa.select(sa.or_(live, there)))


async def delete_user(
    connection: AsyncConnection, user: User, also_known_as: Sequence[str]
) -> None:
    """Delete the user and all their rows.

    `also_known_as` are their names in rate limits.
    """
    own_sessions = sa.select(auth_sessions.c.session_id).where(
        auth_sessions.c.user_id == user.user_id
    )
    await connection.execute(
        sa.delete(session_steps).where(session_steps.c.session_id.in_(own_sessions))
    )
    await connection.execute(
        sa.delete(invitations).where(
            sa.or_(
                invitations.c.used_by == user.user_id,
                invitations.c.created_by == user.user_id,
                invitations.c.email == user.email,
            )
        )
    )
    for name in also_known_as:
        named = rate_limits.c.key.endswith(f":{name}", autoescape=True)
        await connection.execute(sa.delete(rate_limits).where(named))
    for table in reversed(metadata.sorted_tables):
        for column in table.columns:
            if any(key.column is users.c.id for key in column.foreign_keys):
                await connection.execute(sa.delete(table).where(column == user.user_id))
    await connection.execute(sa.delete(users).where(users.c.id == user.user_id))
