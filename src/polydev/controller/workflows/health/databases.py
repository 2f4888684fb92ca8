"""Check of the database: reads, writes, schema version and leases."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from polydev.controller.store.engine import schema_version
from polydev.controller.store.engine.database import Database
from polydev.controller.store.queries.system import controllers
from polydev.shared.domain import Finding
from polydev.shared.hints import Hint

_LIMIT_S = 5.0


async def check(database: Database) -> Sequence[Finding]:
    """Check reads, writes and the schema. Raises DatabaseUnavailable."""
    wrong = [it for it in (await _read(database), await _written(database)) if it is not None]
    if wrong:
        return wrong
    return [
        Finding("database", True, "Readable and writable, with the tables of this version"),
        *await _leases(database),
    ]


async def _read(database: Database) -> Finding | None:
    try:
        async with asyncio.timeout(_LIMIT_S), database.read() as connection:
            difference = await schema_version.describe_mismatch(connection)
    except TimeoutError:
        return Finding(
            "database",
            False,
            f"The database did not answer within {_LIMIT_S:g} s",
            "Check that its server (DATABASE_URL) is running and not overloaded",
        )
    if difference is None:
        return None
    hint = Hint.RESTART_POLYDEV.text()
    return Finding("database", False, f"The database's tables are {difference}", hint)


async def _written(database: Database) -> Finding | None:
    """Try to write. A transaction that waits for a lock cannot be cancelled, so it is left."""
    writing = asyncio.create_task(_write(database))
    await asyncio.wait({writing}, timeout=_LIMIT_S)
    if writing.done():
        return writing.result()
    writing.add_done_callback(lambda task: task.cancelled() or task.exception())
    return Finding(
        "database",
        False,
        f"The database is locked: a write waited for {_LIMIT_S:g} s",
        "Another program holds a transaction open: stop that program (a backup, a database "
        "browser), or the blocking query",
    )


async def _write(database: Database) -> None:
    async with database.write():
        pass


async def _leases(database: Database) -> Sequence[Finding]:
    """Check the leases of controllers that share a PostgreSQL database."""
    async with database.read() as connection:
        if connection.dialect.name != "postgresql":
            return []
        alive, lapsed = (
            await controllers.list_alive(connection),
            await controllers.list_expired(connection),
        )
    if not lapsed:
        return [Finding("leases", True, f"{len(alive)} controllers, each with a valid lease")]
    return [
        Finding(
            "leases",
            False,
            f"The lease of controller {name} has expired: it died, or cannot reach the database",
            "Another controller takes over its work within a minute. If none is running, start "
            "one: polydev up",
        )
        for name in sorted(lapsed)
    ]
