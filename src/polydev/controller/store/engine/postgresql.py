"""PostgreSQL: connections, the role that each transaction acts as, and its errors in our words.

`database.py` asks for it when DATABASE_URL names one. The login that the URL names owns the tables
and may become two roles, `polydev_worker` and `polydev_person`; every transaction begins by
becoming one of them, for itself alone: nothing of it is left when the connection goes back to the
pool. What the roles may do is said by the migrations.
"""

from __future__ import annotations

import re
from typing import Any

import psycopg
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from polydev.controller.store.engine.change_bus import ChangeBus
from polydev.controller.store.engine.locks import lock_id
from polydev.controller.store.engine.pg_notify import PgChangeBus, first_line
from polydev.controller.store.engine.roles import USER, WORKER, ensure_roles
from polydev.shared.domain import UserId
from polydev.shared.errors import BadRequest, BadSettings, DatabaseUnavailable

_ROLE, _USER, _READS = "polydev_role", "polydev_person", "polydev_reads"
_KEPT_CONNECTIONS = 10
_MORE_CONNECTIONS = 10
_RENEWED_S = 1800
_STATEMENT_LIMIT = "30s"
_LOCK_LIMIT = "20s"
_IDLE_LIMIT = "60s"

_CONNECT = {
    "application_name": "polydev",
    "connect_timeout": "10",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
}

_ACT = (
    "SELECT set_config('role', %s, true), set_config('polydev.user_id', %s, true),"
    f" set_config('statement_timeout', '{_STATEMENT_LIMIT}', true),"
    f" set_config('lock_timeout', '{_LOCK_LIMIT}', true),"
    f" set_config('idle_in_transaction_session_timeout', '{_IDLE_LIMIT}', true)"
)
_ACT_AS_OWNER = (
    "SELECT set_config('role', 'none', true), set_config('polydev.user_id', '', true),"
    " set_config('statement_timeout', '0', true), set_config('lock_timeout', '0', true)"
)


class PostgresqlBackend:
    """One database on a server, used by any number of controllers."""

    def __init__(self, url: sa.URL) -> None:
        """Raises: BadSettings."""
        if not url.database:
            raise BadSettings(
                "DATABASE_URL does not say which database to use",
                hint="Write its name after the server's: postgresql://user@server/polydev",
            )
        self._url = url
        self.engine = _engine(url)
        _, parameters = self.engine.dialect.create_connect_args(url)
        self.changes: ChangeBus = PgChangeBus({**_CONNECT, **parameters})

    def options(self, *, writes: bool, user: UserId | None) -> dict[str, Any]:
        if user is not None and not user:
            raise ValueError("a person without an id")
        role = WORKER if user is None else USER
        return {_ROLE: role, _USER: user or "", _READS: not writes}

    def owners_options(self) -> dict[str, Any]:
        return {_ROLE: None, _READS: False}

    async def prepare(self, connection: AsyncConnection) -> None:
        number = lock_id("migrations")
        await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(number)))
        await connection.run_sync(ensure_roles)

    def translated(self, error: DBAPIError) -> Exception:
        cause = error.orig
        words = first_line(cause or error)
        if isinstance(cause, psycopg.DataError) and "NUL (0x00)" in words:
            return BadRequest("A text holds a NUL character, which cannot be kept")
        if isinstance(cause, psycopg.OperationalError) and cause.sqlstate is None:
            return self._cannot_connect(words)
        ended = psycopg.errors.IdleInTransactionSessionTimeout  # no OperationalError to psycopg
        if isinstance(cause, (psycopg.OperationalError, ended)):
            return DatabaseUnavailable(f"PostgreSQL gave up: {words}", hint="Try again")
        return error

    def _cannot_connect(self, words: str) -> Exception:
        """What the client's library tells of a connection that could not be made, or broke."""
        login, place = self._url.username, f"{self._url.host or 'its socket'}"
        if "authentication failed" in words or "no password supplied" in words:
            return BadSettings(
                f"PostgreSQL at {place} does not accept DATABASE_URL's user {login} and password"
            )
        if re.search(r'database ".*" does not exist', words):
            return BadSettings(
                f"PostgreSQL at {place} has no database {self._url.database}",
                hint=f"Have an administrator of that server run: "
                f'CREATE DATABASE "{self._url.database}" OWNER "{login}";',
            )
        return DatabaseUnavailable(
            f"PostgreSQL at {place} cannot be used: {words}",
            hint="See that it runs, and that DATABASE_URL names it",
        )


def _engine(url: sa.URL) -> AsyncEngine:
    engine = create_async_engine(
        url,
        connect_args={name: value for name, value in _CONNECT.items() if name not in url.query},
        pool_size=_KEPT_CONNECTIONS,
        max_overflow=_MORE_CONNECTIONS,
        pool_recycle=_RENEWED_S,
    )
    event.listen(engine.sync_engine, "begin", _begin)
    return engine


def _begin(connection: sa.Connection) -> None:
    """Say what this transaction is, and become who it acts as, until it ends.

    Every transaction says all of it, whatever the last one over that connection was: who is cut
    between two words of it leaves a connection that is half the one and half the other. (SQLAlchemy
    would say it for reading alone, and take it back when that ends, if it got so far.)
    """
    options = connection.get_execution_options()
    raw: Any = connection.connection.dbapi_connection
    dialect: Any = connection.dialect
    dialect.set_isolation_level(raw, "REPEATABLE READ" if options[_READS] else "READ COMMITTED")
    dialect.set_readonly(raw, options[_READS])
    role = options[_ROLE]
    if role is None:
        connection.exec_driver_sql(_ACT_AS_OWNER)
    else:
        connection.exec_driver_sql(_ACT, (role, options[_USER]))
