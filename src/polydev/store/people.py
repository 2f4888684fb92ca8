"""Rows of `users`."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.domain import Person, PersonId, Role
from polydev.store.tables import users


async def get(connection: AsyncConnection, user_id: PersonId) -> Person | None:
    """The person of that id."""
    row = (await connection.execute(sa.select(users).where(users.c.id == user_id))).one_or_none()
    return None if row is None else _person(row)


async def add(connection: AsyncConnection, person: Person) -> None:
    """A new person. Their id and address must both be new."""
    await connection.execute(
        sa.insert(users).values(
            id=person.user_id,
            email=person.email,
            created_at=person.created_at,
            role=person.role,
        )
    )


def _person(row: sa.Row[Any]) -> Person:
    return Person(
        user_id=PersonId(row.id),
        email=row.email,
        created_at=row.created_at,
        role=Role(row.role),
        disabled_at=row.disabled_at,
        deleting_at=row.deleting_at,
    )
