"""Rows of `users`."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.domain import Person, PersonId
from polydev.store.tables import users


async def get(connection: AsyncConnection, user_id: PersonId) -> Person | None:
    """The person of that id."""
    row = (await connection.execute(sa.select(users).where(users.c.id == user_id))).one_or_none()
    return None if row is None else Person(PersonId(row.id), row.email, row.created_at)


async def add(connection: AsyncConnection, person: Person) -> None:
    """A new person. Their id and address must both be new."""
    await connection.execute(
        sa.insert(users).values(id=person.user_id, email=person.email, created_at=person.created_at)
    )
