"""The row of `installation`: which Polydev this database is of. Machines are labelled with it."""

from __future__ import annotations

import uuid

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.store.engine import locks
from polydev.controller.store.tables import installation
from polydev.shared.domain import now


async def get_or_create_id(connection: AsyncConnection) -> str:
    """This installation's id, made once. In a worker's writing transaction."""
    await locks.acquire(connection, "installation")
    kept = (await connection.execute(sa.select(installation.c.installation_id))).scalar()
    if kept is not None:
        return str(kept)
    made = str(uuid.uuid4())
    await connection.execute(sa.insert(installation).values(installation_id=made, created_at=now()))
    return made
