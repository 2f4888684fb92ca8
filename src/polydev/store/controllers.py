"""Rows of `controllers`: which controllers live, each by a lease that it renews.

`workflows/leases.py` asks. Times are the database's own, so that controllers' clocks do not matter.
Only a PostgreSQL database has several controllers; SQLite's is held by a lock on its folder.
"""

from __future__ import annotations

from collections.abc import Set

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.store.locks import number_of
from polydev.store.tables import controllers

_NOW = sa.func.clock_timestamp()
_TURN = number_of("dead controllers")
"""Of the advisory lock that a controller holds while it looks for dead ones."""
_TURN_LIMIT_MS = 5_000


async def begin_lease(
    connection: AsyncConnection,
    executor_id: str,
    valid_s: float,
    version: str,
    key_ids: Set[str],
) -> None:
    """A controller that begins, alive for so long unless it renews its lease; it was started with
    these keys."""
    keys = " ".join(sorted(key_ids))
    values = {"executor_id": executor_id, "version": version, "key_ids": keys}
    await connection.execute(
        sa.insert(controllers).values(**values, started_at=_NOW, lease_until=_until(valid_s))
    )


async def renew_lease(connection: AsyncConnection, executor_id: str, valid_s: float) -> bool:
    """Whether the controller is still alive, and now for so long again. What has run out is over:
    others may have gone on with its workflows."""
    result = await connection.execute(
        sa.update(controllers)
        .where(controllers.c.executor_id == executor_id, controllers.c.lease_until > _NOW)
        .values(lease_until=_until(valid_s))
    )
    return bool(result.rowcount)


async def end_leases(connection: AsyncConnection, executors: Set[str]) -> None:
    """These controllers are no more."""
    await connection.execute(
        sa.delete(controllers).where(controllers.c.executor_id.in_(sorted(executors)))
    )


async def alive(connection: AsyncConnection) -> frozenset[str]:
    """Every controller whose lease has not run out."""
    query = sa.select(controllers.c.executor_id).where(controllers.c.lease_until > _NOW)
    return frozenset(row.executor_id for row in await connection.execute(query))


async def with_key(connection: AsyncConnection, key_id: str) -> frozenset[str]:
    """Every living controller that was started with that key, where there are several."""
    if connection.dialect.name != "postgresql":
        return frozenset()
    query = sa.select(controllers.c.executor_id, controllers.c.key_ids).where(
        controllers.c.lease_until > _NOW
    )
    return frozenset(
        row.executor_id for row in await connection.execute(query) if key_id in row.key_ids.split()
    )


async def eldest(connection: AsyncConnection) -> str | None:
    """The controller that has been alive longest; None where only one can be."""
    if connection.dialect.name != "postgresql":
        return None
    query = (
        sa.select(controllers.c.executor_id)
        .where(controllers.c.lease_until > _NOW)
        .order_by(controllers.c.started_at, controllers.c.executor_id)
        .limit(1)
    )
    return (await connection.execute(query)).scalar()


async def run_out(connection: AsyncConnection) -> frozenset[str]:
    """Every controller whose lease has run out, and that has not been buried."""
    query = sa.select(controllers.c.executor_id).where(controllers.c.lease_until <= _NOW)
    return frozenset(row.executor_id for row in await connection.execute(query))


async def take_turn(connection: AsyncConnection) -> bool:
    """Be the one controller that looks for dead ones until this transaction ends; False if
    another one does. One that is stopped in the middle loses its turn, with its connection."""
    taken = await connection.scalar(
        sa.select(sa.func.pg_try_advisory_xact_lock(_TURN)).select_from(
            sa.func.set_config(
                "idle_in_transaction_session_timeout", str(_TURN_LIMIT_MS), True
            ).alias("limited")
        )
    )
    return bool(taken)


def _until(valid_s: float) -> sa.ColumnElement[object]:
    return _NOW + sa.func.make_interval(0, 0, 0, 0, 0, 0, valid_s)
