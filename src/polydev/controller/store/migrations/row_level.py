"""Row-level security of one table, as migrations write it down; only on PostgreSQL.

Every table is closed to everybody but workers; one that belongs to people is opened to its person
besides. `m0003_row_level_security.py` says what the roles are.
"""

from __future__ import annotations

from typing import NamedTuple

from alembic import op

# Supabase, for one, grants its roles everything on whatever is made in the schema `public`.
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
    """SQL for rows whose person, in that column, is who asks."""
    return f"{column} = (SELECT polydev_person())"


class Own(NamedTuple):
    """What a person may do with rows that are theirs: columns by command, `*` for all."""

    whose: str = mine("user_id")
    written: str | None = None
    """What rows that they write must be like, where that is less than what they see."""
    select: str = ""
    insert: str = ""
    update: str = ""
    delete: bool = False


def close(table: str) -> None:
    """Nobody but workers sees a row, the table's owner included."""
    revoke_from_others(table)
    op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
    op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO polydev_worker")
    op.execute(
        f"CREATE POLICY workers ON {table} TO polydev_worker"
        " USING (current_user = 'polydev_worker') WITH CHECK (current_user = 'polydev_worker')"
    )


def open_to_its_user(table: str, own: Own) -> None:
    """Let people do that with rows of theirs."""
    using, check = f"USING ({own.whose})", f"WITH CHECK ({own.written or own.whose})"
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
    """Take from other roles what they were given when the table was made."""
    op.execute(_REVOKE_FROM_OTHERS.format(table=table))
