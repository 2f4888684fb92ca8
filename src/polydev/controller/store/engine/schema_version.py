"""Compare a database's schema revision with the one that this version knows.

It works without Alembic, which is slow to import: migrations are named after their revisions
(`m0003_...` is "0003"), and the version table is Alembic's.
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
    """Return the database's revision; None before the first migration."""
    return await connection.run_sync(_revision)


def require_known(revision: str | None) -> None:
    """Raise BadSettings for a database that a newer version has migrated."""
    if revision is not None and revision not in KNOWN:
        raise BadSettings(
            f"The database of DATABASE_URL belongs to a newer version of Polydev "
            f"(migration {revision}; this one knows {NEWEST})",
            hint="Start the newer version",
        )


async def describe_mismatch(connection: AsyncConnection) -> str | None:
    """Describe how the schema differs from this version's.

    None if it does not.
    """
    has = await current_revision(connection)
    if has == NEWEST:
        return None
    if has in KNOWN:
        return f"older than this version: it is at migration {has}, not {NEWEST}"
    if has is None:
        return f"missing: migration {NEWEST} has not run"
    return f"newer than this version, which does not know migration {has}"


def _revision(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table(_VERSIONS):
        return None
    found = connection.execute(sa.text(f"SELECT version_num FROM {_VERSIONS}"))  # noqa: S608
    return found.scalar_one_or_none()
