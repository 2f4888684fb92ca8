"""Create PostgreSQL's roles that transactions act as.

Roles belong to the server, not to a database. So each start of a migration checks them again, which
also covers a dump that was restored on another server.
"""

from __future__ import annotations

import sqlalchemy as sa

from polydev.shared.errors import BadSettings

WORKER = "polydev_worker"
"""Role of the controller itself: sees every row."""
USER = "polydev_person"
"""Role of one user: sees that user's rows."""
ROLES = (WORKER, USER)

_SEPARATE_GRANTS_VERSION = 160000
"""Since PostgreSQL 16, SET and INHERIT of a role are granted separately."""


def ensure_roles(connection: sa.Connection) -> None:
    """Create missing roles and grant them to the login.

    Raises: BadSettings, with the SQL for an administrator, if the login may not do so.
    """
    _require_schema(connection)
    missing = [role for role in ROLES if not _can_become(connection, role)]
    if not missing:
        return
    if not _may_create_roles(connection, missing):
        login = _login(connection)
        raise BadSettings(
            f"The PostgreSQL user {login} may not create Polydev's roles",
            hint=f"Have an administrator of that server run: {_manual_sql(connection, login)}",
        )
    for role in missing:
        connection.exec_driver_sql(_CREATE.format(role=role))
        connection.exec_driver_sql(f"GRANT {role} TO CURRENT_USER{_grant_options(connection)}")


_CREATE = """
DO $$ BEGIN
    CREATE ROLE {role} NOLOGIN;
EXCEPTION WHEN duplicate_object OR unique_violation THEN
    NULL;  -- exists already, or is being created for another database of the server
END $$
"""


def _require_schema(connection: sa.Connection) -> None:
    """Raise BadSettings unless the login may create tables."""
    schema, may_create, database = connection.exec_driver_sql(
        "SELECT current_schema(), has_schema_privilege(current_schema(), 'CREATE'),"
        " quote_ident(current_database())"
    ).one()
    if not may_create:
        login = _login(connection)
        raise BadSettings(
            f"The PostgreSQL user {login} may not create tables in the schema {schema}",
            hint=f"Have an administrator of that server run: "
            f"ALTER DATABASE {database} OWNER TO {login};",
        )


def _exists(connection: sa.Connection, role: str) -> bool:
    found = connection.execute(sa.text("SELECT to_regrole(:role)"), {"role": role}).scalar()
    return found is not None


def _can_become(connection: sa.Connection, role: str) -> bool:
    privilege = "SET" if _version(connection) >= _SEPARATE_GRANTS_VERSION else "MEMBER"
    return _exists(connection, role) and _has_role(connection, role, privilege)


def _has_role(connection: sa.Connection, role: str, privilege: str) -> bool:
    query = sa.text("SELECT pg_has_role(current_user, :role, :privilege)")
    return bool(connection.execute(query, {"role": role, "privilege": privilege}).scalar())


def _may_create_roles(connection: sa.Connection, roles: list[str]) -> bool:
    """Check that the login may create and grant the roles."""
    query = "SELECT rolcreaterole OR rolsuper FROM pg_roles WHERE rolname = current_user"
    if not connection.exec_driver_sql(query).scalar():
        return False
    if _version(connection) < _SEPARATE_GRANTS_VERSION:
        return True
    existing = [role for role in roles if _exists(connection, role)]
    return all(_has_role(connection, role, "MEMBER WITH ADMIN OPTION") for role in existing)


def _manual_sql(connection: sa.Connection, login: str) -> str:
    sql = [f"CREATE ROLE {role} NOLOGIN;" for role in ROLES if not _exists(connection, role)]
    return " ".join([*sql, f"GRANT {', '.join(ROLES)} TO {login};"])


def _grant_options(connection: sa.Connection) -> str:
    separate = _version(connection) >= _SEPARATE_GRANTS_VERSION
    return " WITH INHERIT FALSE, SET TRUE" if separate else ""


def _login(connection: sa.Connection) -> str:
    return str(connection.exec_driver_sql("SELECT quote_ident(current_user)").scalar_one())


def _version(connection: sa.Connection) -> int:
    return int(connection.exec_driver_sql("SHOW server_version_num").scalar_one())
