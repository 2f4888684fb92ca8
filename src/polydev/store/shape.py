"""Which migrations a database has had, and which this version knows.

`workflows/checkup` asks. Migrating is `database.py`'s.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.ext.asyncio import AsyncConnection

_MIGRATIONS = Path(__file__).parent / "migrations"


async def difference(connection: AsyncConnection) -> str | None:
    """How the tables differ from this version's, in words; None when they do not."""
    known = [script.revision for script in ScriptDirectory(str(_MIGRATIONS)).walk_revisions()]
    has = await connection.run_sync(_revision)
    if has == known[0]:
        return None
    if has in known:
        return f"older than this version: migration {known[0]} is missing (it has {has})"
    if has is None:
        return f"not there: migration {known[0]} is missing"
    return f"newer than this version, which does not know migration {has}"


def _revision(connection: sa.Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()
