"""Queries of `users`."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.store.engine import event_outbox
from polydev.controller.store.engine.keyset import PageSpec, page
from polydev.controller.store.tables import users
from polydev.shared.domain import Role, User, UserId
from polydev.shared.errors import AlreadyExists


async def find(connection: AsyncConnection, user_id: UserId) -> User | None:
    """Return a user."""
    row = (await connection.execute(sa.select(users).where(users.c.id == user_id))).one_or_none()
    return None if row is None else _user(row)


async def find_by_email(connection: AsyncConnection, email: str) -> User | None:
    """Return the user with a normalized e-mail address."""
    row = (await connection.execute(sa.select(users).where(users.c.email == email))).one_or_none()
    return None if row is None else _user(row)


async def list_all(connection: AsyncConnection, span: PageSpec | None = None) -> list[User]:
    """List users, oldest account first: all, or a page."""
    order = (users.c.created_at, users.c.id)
    return [_user(row) for row in await connection.execute(page(sa.select(users), order, span))]


async def insert(connection: AsyncConnection, user: User) -> None:
    """Insert a user. Raises AlreadyExists if the id or address is taken.

    The transaction stays usable after that.
    """
    row = sa.insert(users).values(
        id=user.user_id, email=user.email, created_at=user.created_at, role=user.role
    )
    try:
        async with connection.begin_nested():
            await connection.execute(row)
    except IntegrityError:
        raise AlreadyExists(
            "An account with this e-mail address already exists", hint="Sign in instead"
        ) from None


async def set_disabled(
    connection: AsyncConnection, user_id: UserId, disabled_at: datetime | None
) -> None:
    """Disable a user, or enable them again (None)."""
    await connection.execute(
        sa.update(users).where(users.c.id == user_id).values(disabled_at=disabled_at)
    )
    status = "enabled" if disabled_at is None else "disabled"
    await event_outbox.emit(connection, user_id, "account", user_id, status=status)


async def set_role(connection: AsyncConnection, user_id: UserId, role: Role) -> None:
    """Set a user's role."""
    await connection.execute(sa.update(users).where(users.c.id == user_id).values(role=role))
    await event_outbox.emit(connection, user_id, "account", user_id, role=role)


def _user(row: sa.Row[Any]) -> User:
    return User(
        user_id=UserId(row.id),
        email=row.email,
        created_at=row.created_at,
        role=Role(row.role),
        disabled_at=row.disabled_at,
        deleting_at=row.deleting_at,
    )
