"""Query of `installation`: the id that labels this installation's machines."""

from __future__ import annotations

import uuid

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.store.engine import locks
from polydev.controller.store.tables import installation
from polydev.shared.domain import now


async def get_or_create_id(connection: AsyncConnection) -> str:
    """Return this installation's id; create it once, in a worker's write transaction."""
    await locks.acquire(connection, "installation")
    existing = (await connection.execute(sa.select(installation.c.installation_id))).scalar()
    if existing is not None:
        return str(existing)
    made = str(uuid.uuid4())
    await connection.execute(sa.insert(installation).values(installation_id=made, created_at=now()))
    return made
