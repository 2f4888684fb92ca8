"""Helpers for row-level security in migrations (PostgreSQL only).

Every table is closed to all roles but workers; a table with users' rows is also opened to the user
of each row. `m0003_row_level_security.py` explains the roles.
"""

from __future__ import annotations

from typing import NamedTuple

from alembic import op

# Supabase grants its roles all rights on new tables in the schema `public`.
_REVOKE_FROM_OTHERS = """
DO $$
DECLARE grantee text;
BEGIN
    FOR grantee IN
        SELECT DISTINCT CASE acl.grantee WHEN 0 THEN 'PUBLIC' ELSE acl.grantee::regrole::text END
        FROM pg_class, aclexplode(relacl) AS acl
        WHERE pg_class.oid = '{table}'::regclass AND acl.grantee <> relowner
    LOOP
        EXECUTE format('REVOKE ALL ON {table} FROM %s', grantee);
    END LOOP;
END $$
"""


def mine(column: str) -> str:
    """Return SQL for rows whose column names the current user."""
    return f"{column} = (SELECT polydev_person())"


class Own(NamedTuple):
    """Rights of users on their own rows: columns per command (`*`: all)."""

    condition: str = mine("user_id")
    written: str | None = None
    """Condition on written rows, if stricter than on visible ones."""
    select: str = ""
    insert: str = ""
    update: str = ""
    delete: bool = False


def close(table: str) -> None:
    """Close a table to all roles but workers, even to its owner."""
    revoke_from_others(table)
    op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
    op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO polydev_worker")
    op.execute(
        f"CREATE POLICY workers ON {table} TO polydev_worker"
        " USING (current_user = 'polydev_worker') WITH CHECK (current_user = 'polydev_worker')"
    )


def open_to_its_user(table: str, own: Own) -> None:
    """Allow users the given commands on their own rows."""
    using, check = f"USING ({own.condition})", f"WITH CHECK ({own.written or own.condition})"
    for command, columns, conditions in (
        ("SELECT", own.select, using),
        ("INSERT", own.insert, check),
        ("UPDATE", own.update, f"{using} {check}"),
        ("DELETE", "*" if own.delete else "", using),
    ):
        if columns:
            of = "" if columns == "*" else f" ({columns})"
            op.execute(f"GRANT {command}{of} ON {table} TO polydev_person")
            op.execute(f"CREATE POLICY own_{command.lower()} ON {table} FOR {command} {conditions}")


def revoke_from_others(table: str) -> None:
    """Revoke the rights that other roles got when the table was created."""
    op.execute(_REVOKE_FROM_OTHERS.format(table=table))
