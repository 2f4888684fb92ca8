"""Queries of `controllers`: leases of running controllers.

Times are the database's, so that clocks of controllers do not matter. Only PostgreSQL has several
controllers; SQLite's folder is locked by one.
"""

from __future__ import annotations

from collections.abc import Set

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.store.tables import controllers

_NOW = sa.func.clock_timestamp()
_CLAIM = "takes over "
"""Prefix of rows that claim a dead controller's workflows; not a controller's id."""
_IS_CLAIM = controllers.c.executor_id.startswith(_CLAIM)
_ALIVE = sa.and_(controllers.c.lease_until > _NOW, ~_IS_CLAIM)
_EXPIRED = sa.and_(controllers.c.lease_until <= _NOW, ~_IS_CLAIM)


async def begin_lease(
    connection: AsyncConnection,
    executor_id: str,
    valid_s: float,
    version: str,
    key_ids: Set[str],
) -> None:
    """Insert the lease of a starting controller, with its key ids."""
    keys = " ".join(sorted(key_ids))
    values = {"executor_id": executor_id, "version": version, "key_ids": keys}
    await connection.execute(
        sa.insert(controllers).values(**values, started_at=_NOW, lease_until=_until(valid_s))
    )


async def renew_lease(connection: AsyncConnection, executor_id: str, valid_s: float) -> bool:
    """Renew a lease; return False if it has expired.

    An expired lease cannot be renewed: others may have taken over its workflows.
    """
    result = await connection.execute(
        sa.update(controllers)
        .where(controllers.c.executor_id == executor_id, controllers.c.lease_until > _NOW)
        .values(lease_until=_until(valid_s))
    )
    return bool(result.rowcount)


async def end_leases(connection: AsyncConnection, executors: Set[str]) -> None:
    """Delete the leases of these controllers."""
    await connection.execute(
        sa.delete(controllers).where(controllers.c.executor_id.in_(sorted(executors)))
    )


async def list_alive(connection: AsyncConnection) -> frozenset[str]:
    """Return all controllers with a valid lease."""
    query = sa.select(controllers.c.executor_id).where(_ALIVE)
    return frozenset(row.executor_id for row in await connection.execute(query))


async def list_others_alive(connection: AsyncConnection, executor_id: str) -> frozenset[str]:
    """Return all other controllers with a valid lease; none on SQLite."""
    if connection.dialect.name != "postgresql":
        return frozenset()
    return await list_alive(connection) - {executor_id}


async def list_with_key(connection: AsyncConnection, key_id: str) -> frozenset[str]:
    """Return the live controllers that have a key; none on SQLite."""
    if connection.dialect.name != "postgresql":
        return frozenset()
    query = sa.select(controllers.c.executor_id, controllers.c.key_ids).where(_ALIVE)
    return frozenset(
        row.executor_id for row in await connection.execute(query) if key_id in row.key_ids.split()
    )


async def find_oldest(connection: AsyncConnection) -> str | None:
    """Return the longest-running live controller; None on SQLite."""
    if connection.dialect.name != "postgresql":
        return None
    query = (
        sa.select(controllers.c.executor_id)
        .where(_ALIVE)
        .order_by(controllers.c.started_at, controllers.c.executor_id)
        .limit(1)
    )
    return (await connection.execute(query)).scalar()


async def list_expired(connection: AsyncConnection) -> frozenset[str]:
    """Return controllers with an expired lease that still have a row."""
    query = sa.select(controllers.c.executor_id).where(_EXPIRED)
    return frozenset(row.executor_id for row in await connection.execute(query))


async def claim(
    connection: AsyncConnection, dead: Set[str], valid_s: float, version: str
) -> frozenset[str]:
    """Claim the workflows of dead controllers; return those that were claimed.

    A claim expires, so that another controller can claim them if the caller dies.
    """
    new = postgresql.insert(controllers).values(
        [
            {
                "executor_id": _CLAIM + executor_id,
                "lease_until": _until(valid_s),
                "started_at": _NOW,
                "version": version,
                "key_ids": "",
            }
            for executor_id in sorted(dead)
        ]
    )
    rows = await connection.execute(
        new.on_conflict_do_update(
            index_elements=["executor_id"],
            set_={"lease_until": new.excluded.lease_until},
            where=controllers.c.lease_until <= _NOW,
        ).returning(controllers.c.executor_id)
    )
    return frozenset(row.executor_id.removeprefix(_CLAIM) for row in rows)


async def delete_claimed(connection: AsyncConnection, claimed: Set[str]) -> None:
    """Delete dead controllers and their claims after the takeover."""
    await end_leases(connection, claimed | {_CLAIM + executor_id for executor_id in claimed})


def _until(valid_s: float) -> sa.ColumnElement[object]:
    return _NOW + sa.func.make_interval(0, 0, 0, 0, 0, 0, valid_s)
