"""Rows of `users`."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.store.engine import event_outbox
from polydev.controller.store.engine.keyset import Span, page
from polydev.controller.store.tables import users
from polydev.shared.domain import Person, PersonId, Role
from polydev.shared.errors import AlreadyExists


async def get(connection: AsyncConnection, user_id: PersonId) -> Person | None:
    """The person of that id."""
    row = (await connection.execute(sa.select(users).where(users.c.id == user_id))).one_or_none()
    return None if row is None else _person(row)


async def by_email(connection: AsyncConnection, email: str) -> Person | None:
    """The person with that address, as `access.addresses` writes it."""
    row = (await connection.execute(sa.select(users).where(users.c.email == email))).one_or_none()
    return None if row is None else _person(row)


async def every(connection: AsyncConnection, span: Span | None = None) -> list[Person]:
    """All of them in the order in which they came, or a span of that."""
    order = (users.c.created_at, users.c.id)
    return [_person(row) for row in await connection.execute(page(sa.select(users), order, span))]


async def add(connection: AsyncConnection, person: Person) -> None:
    """A new person. Raises AlreadyExists if their id or address is somebody's; the transaction can
    go on."""
    row = sa.insert(users).values(
        id=person.user_id, email=person.email, created_at=person.created_at, role=person.role
    )
    try:
        async with connection.begin_nested():
            await connection.execute(row)
    except IntegrityError:
        raise AlreadyExists(
            "There is an account with this e-mail address", hint="Sign in instead"
        ) from None


async def set_disabled(
    connection: AsyncConnection, user_id: PersonId, disabled_at: datetime | None
) -> None:
    """Shut a person out, or let them in again (None)."""
    await connection.execute(
        sa.update(users).where(users.c.id == user_id).values(disabled_at=disabled_at)
    )
    status = "enabled" if disabled_at is None else "disabled"
    await event_outbox.emit(connection, user_id, "account", user_id, status=status)


async def set_role(connection: AsyncConnection, user_id: PersonId, role: Role) -> None:
    """Make a person an administrator, or no longer one."""
    await connection.execute(sa.update(users).where(users.c.id == user_id).values(role=role))
    await event_outbox.emit(connection, user_id, "account", user_id, role=role)


def _person(row: sa.Row[Any]) -> Person:
    return Person(
        user_id=PersonId(row.id),
        email=row.email,
        created_at=row.created_at,
        role=Role(row.role),
        disabled_at=row.disabled_at,
        deleting_at=row.deleting_at,
    )
