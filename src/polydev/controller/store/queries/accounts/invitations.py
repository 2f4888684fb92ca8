"""Queries of `invitations`; codes are stored as hashes."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.store.tables import invitations, users
from polydev.shared.domain import Invitation, Role, UserId
from polydev.shared.errors import NoSuchToken

# A disabled or former administrator must not keep a way back in.
_CREATOR_MAY_INVITE = sa.exists().where(
    users.c.id == invitations.c.created_by,
    users.c.role == Role.ADMINISTRATOR,
    users.c.disabled_at.is_(None),
    users.c.deleting_at.is_(None),
)


async def insert(connection: AsyncConnection, invitation: Invitation, secret_hash: str) -> None:
    """Insert an invitation."""
    await connection.execute(
        sa.insert(invitations).values(
            invitation_id=invitation.invitation_id,
            secret_hash=secret_hash,
            email=invitation.email,
            role=invitation.role,
            created_by=invitation.created_by,
            created_at=invitation.created_at,
            expires_at=invitation.expires_at,
        )
    )


async def find_by_hash(connection: AsyncConnection, secret_hash: str) -> Invitation | None:
    """Return an invitation, used and expired ones too.

    None if its creator lost the right.
    """
    query = sa.select(invitations).where(
        invitations.c.secret_hash == secret_hash, _CREATOR_MAY_INVITE
    )
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else _invitation(row)


async def list_all(connection: AsyncConnection) -> list[Invitation]:
    """List all invitations, newest first."""
    query = sa.select(invitations).order_by(
        invitations.c.created_at.desc(), invitations.c.invitation_id
    )
    return [_invitation(row) for row in await connection.execute(query)]


async def mark_used(
    connection: AsyncConnection, invitation_id: str, by: UserId, at: datetime
) -> bool:
    """Mark an invitation as used. False if it no longer can be."""
    used = await connection.execute(
        sa.update(invitations)
        .where(
            invitations.c.invitation_id == invitation_id,
            invitations.c.used_at.is_(None),
            _CREATOR_MAY_INVITE,
        )
        .values(used_at=at, used_by=by)
    )
    return used.rowcount == 1


async def delete_unused(connection: AsyncConnection, invitation_id: str) -> None:
    """Delete an unused invitation. Raises NoSuchToken."""
    deleted = await connection.execute(
        sa.delete(invitations).where(
            invitations.c.invitation_id == invitation_id, invitations.c.used_at.is_(None)
        )
    )
    if not deleted.rowcount:
        raise NoSuchToken("There is no unused invitation with this id")


def _invitation(row: sa.Row[Any]) -> Invitation:
    return Invitation(
        invitation_id=row.invitation_id,
        email=row.email,
        role=Role(row.role),
        created_by=UserId(row.created_by),
        created_at=row.created_at,
        expires_at=row.expires_at,
        used_at=row.used_at,
        used_by=None if row.used_by is None else UserId(row.used_by),
    )
