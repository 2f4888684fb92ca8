"""Which migrations a database has had, and which this version knows.

`database.py` asks before it migrates, `workflows/checkup` when somebody wonders. It does without
Alembic, which is large: migrations are named after their revisions (`m0003_...` is "0003"), and the
table of versions is Alembic's own.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.shared.errors import BadSettings

MIGRATIONS = Path(__file__).resolve().parents[1] / "migrations"

KNOWN = tuple(sorted(path.name[1:5] for path in (MIGRATIONS / "versions").glob("m*_*.py")))
NEWEST = KNOWN[-1]

_VERSIONS = "alembic_version"


async def current_revision(connection: AsyncConnection) -> str | None:
    """The last migration that the database has had; None before the first."""
    return await connection.run_sync(_revision)


def require_known(revision: str | None) -> None:
    """Raises BadSettings for a database that a newer version has migrated."""
    if revision is not None and revision not in KNOWN:
        raise BadSettings(
            f"DATABASE_URL names a database that a newer version of Polydev uses "
            f"(migration {revision}; this one knows {NEWEST})",
            hint="Start the newer version",
        )


async def describe_mismatch(connection: AsyncConnection) -> str | None:
    """How the tables differ from this version's, in words; None when they do not."""
    has = await current_revision(connection)
    if has == NEWEST:
        return None
    if has in KNOWN:
        return f"older than this version: migration {NEWEST} is missing (it has {has})"
    if has is None:
        return f"not there: migration {NEWEST} is missing"
    return f"newer than this version, which does not know migration {has}"


def _revision(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table(_VERSIONS):
        return None
    found = connection.execute(sa.text(f"SELECT version_num FROM {_VERSIONS}"))  # noqa: S608
    return found.scalar_one_or_none()
