"""PostgreSQL's roles: who transactions act as, and what the login needs to become them.

Roles belong to the whole server, not to a database, so each migration looks after them anew: a
dump that was restored on another server finds them there.
"""

from __future__ import annotations

import sqlalchemy as sa

from polydev.shared.errors import BadSettings

WORKER = "polydev_worker"
"""Acts for the controller itself: sees every row."""
USER = "polydev_person"
"""Acts for one person: sees what is theirs."""
ROLES = (WORKER, USER)

_SEPARATE_GRANTS_VERSION = 160000
"""Since PostgreSQL 16, becoming a role and having its rights are granted one by one."""


def ensure_roles(connection: sa.Connection) -> None:
    """Make the roles that are missing, and let the login become them.

    Raises: BadSettings, with the SQL for an administrator, if the login may not do that.
    """
    _require_schema(connection)
    lacking = [role for role in ROLES if not _can_become(connection, role)]
    if not lacking:
        return
    if not _may_create_roles(connection, lacking):
        login = _login(connection)
        raise BadSettings(
            f"The PostgreSQL user {login} may not make the roles that Polydev acts as",
            hint=f"Have an administrator of that server run: {_manual_sql(connection, login)}",
        )
    for role in lacking:
        connection.exec_driver_sql(_CREATE.format(role=role))
        connection.exec_driver_sql(f"GRANT {role} TO CURRENT_USER{_grant_options(connection)}")


_CREATE = """
DO $$ BEGIN
    CREATE ROLE {role} NOLOGIN;
EXCEPTION WHEN duplicate_object OR unique_violation THEN
    NULL;  -- there already, or made at this moment for another database of the server
END $$
"""


def _require_schema(connection: sa.Connection) -> None:
    """Raises BadSettings unless tables can be made."""
    schema, may_create, database = connection.exec_driver_sql(
        "SELECT current_schema(), has_schema_privilege(current_schema(), 'CREATE'),"
        " quote_ident(current_database())"
    ).one()
    if not may_create:
        login = _login(connection)
        raise BadSettings(
            f"The PostgreSQL user {login} may not make tables in the schema {schema}",
            hint=f"Have an administrator of that server run: "
            f"ALTER DATABASE {database} OWNER TO {login};",
        )


def _exists(connection: sa.Connection, role: str) -> bool:
    found = connection.execute(sa.text("SELECT to_regrole(:role)"), {"role": role}).scalar()
    return found is not None


def _can_become(connection: sa.Connection, role: str) -> bool:
    how = "SET" if _version(connection) >= _SEPARATE_GRANTS_VERSION else "MEMBER"
    return _exists(connection, role) and _has_role(connection, role, how)


def _has_role(connection: sa.Connection, role: str, how: str) -> bool:
    query = sa.text("SELECT pg_has_role(current_user, :role, :how)")
    return bool(connection.execute(query, {"role": role, "how": how}).scalar())


def _may_create_roles(connection: sa.Connection, roles: list[str]) -> bool:
    """Whether the login may make those that are missing, and grant itself those that are not."""
    query = "SELECT rolcreaterole OR rolsuper FROM pg_roles WHERE rolname = current_user"
    if not connection.exec_driver_sql(query).scalar():
        return False
    if _version(connection) < _SEPARATE_GRANTS_VERSION:
        return True
    there = [role for role in roles if _exists(connection, role)]
    return all(_has_role(connection, role, "MEMBER WITH ADMIN OPTION") for role in there)


def _manual_sql(connection: sa.Connection, login: str) -> str:
    made = [f"CREATE ROLE {role} NOLOGIN;" for role in ROLES if not _exists(connection, role)]
    return " ".join([*made, f"GRANT {', '.join(ROLES)} TO {login};"])


def _grant_options(connection: sa.Connection) -> str:
    apart = _version(connection) >= _SEPARATE_GRANTS_VERSION
    return " WITH INHERIT FALSE, SET TRUE" if apart else ""


def _login(connection: sa.Connection) -> str:
    return str(connection.exec_driver_sql("SELECT quote_ident(current_user)").scalar_one())


def _version(connection: sa.Connection) -> int:
    return int(connection.exec_driver_sql("SHOW server_version_num").scalar_one())
