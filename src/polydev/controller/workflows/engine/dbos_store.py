"""Database of DBOS: a file beside the SQLite database, or a schema of the PostgreSQL one.

`bootstrap.py` opens it and passes it to the engine.

SQLite syncs at every commit here too (`synchronous = FULL`). `NORMAL` is faster, but after a power
failure this store could be minutes older than the rows and the machines: a workflow would create an
existing machine again, fail, and undo it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from polydev.controller.store.engine.database import sqlite_folder

SCHEMA = "polydev_workflows"
"""Schema of DBOS in a PostgreSQL database."""

_CONNECTIONS = 8
_BUSY_TIMEOUT_MS = 30_000


@dataclass(frozen=True, slots=True)
class DbosStore:
    """Database of DBOS. `schema` is None on SQLite."""

    engine: sa.Engine
    schema: str | None

    @property
    def is_shared(self) -> bool:
        """Other controllers may use it at the same time."""
        return self.schema is not None


def open_dbos_store(database_url: str | None, controller_dir: Path) -> DbosStore:
    """Open the DBOS store that belongs to a database URL. Blocks. Raises BadSettings."""
    if database_url is not None and sqlite_folder(database_url, controller_dir) is None:
        return DbosStore(_postgresql(sa.make_url(database_url)), SCHEMA)
    file = controller_dir / "journal.db"
    os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    return DbosStore(_sqlite(file), None)


def _postgresql(url: sa.URL) -> sa.Engine:
    return sa.create_engine(
        url.set(drivername="postgresql+psycopg"),
        pool_size=_CONNECTIONS,
        max_overflow=0,
        pool_pre_ping=True,
        connect_args={"connect_timeout": 10, "application_name": "polydev journal"},
    )


def _sqlite(file: Path) -> sa.Engine:
    engine = sa.create_engine(
        f"sqlite:///{file}", connect_args={"timeout": _BUSY_TIMEOUT_MS / 1000}
    )

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: object) -> None:
        connection.isolation_level = "IMMEDIATE"
        for pragma in (
            f"busy_timeout={_BUSY_TIMEOUT_MS}",
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
        ):
            connection.execute(f"PRAGMA {pragma}")

    return engine
