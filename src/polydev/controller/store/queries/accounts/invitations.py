"""Rows of `invitations`: who may sign up, once. Their codes are kept as hashes."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.store.tables import invitations, users
from polydev.shared.domain import Invitation, Role, UserId
from polydev.shared.errors import NoSuchToken

# Who was shut out, or is no administrator any more, must not have left a way back in.
_CREATOR_MAY_INVITE = sa.exists().where(
    users.c.id == invitations.c.created_by,
    users.c.role == Role.ADMINISTRATOR,
    users.c.disabled_at.is_(None),
    users.c.deleting_at.is_(None),
)


async def insert(connection: AsyncConnection, invitation: Invitation, secret_hash: str) -> None:
    """A new invitation."""
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
    """The invitation with that code, used or over perhaps; None if who made it may no longer."""
    wanted = sa.select(invitations).where(
        invitations.c.secret_hash == secret_hash, _CREATOR_MAY_INVITE
    )
    row = (await connection.execute(wanted)).one_or_none()
    return None if row is None else _invitation(row)


async def list_all(connection: AsyncConnection) -> list[Invitation]:
    """All of them, the newest first."""
    wanted = sa.select(invitations).order_by(
        invitations.c.created_at.desc(), invitations.c.invitation_id
    )
    return [_invitation(row) for row in await connection.execute(wanted)]


async def mark_used(
    connection: AsyncConnection, invitation_id: str, by: UserId, at: datetime
) -> bool:
    """Use it up. False: somebody was faster, it was taken back, or who made it may no longer."""
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
    """Take one back that nobody has used. Raises NoSuchToken."""
    gone = await connection.execute(
        sa.delete(invitations).where(
            invitations.c.invitation_id == invitation_id, invitations.c.used_at.is_(None)
        )
    )
    if not gone.rowcount:
        raise NoSuchToken("No open invitation of that id")


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
