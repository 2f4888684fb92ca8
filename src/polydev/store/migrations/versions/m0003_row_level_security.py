"""PostgreSQL: who may do what with which rows.

Two roles act on the tables (`store/roles.py`). `polydev_worker` has every row of every table.
`polydev_person` has what one person's requests need of that person's own rows, and nothing of
tables that are not listed in `OWNED`. The policies hold for every role that somebody grants rights
to, Supabase's `authenticated` for one: they ask who the person is, not which role acts. The owner
of the tables sees nothing either unless it acts as a worker: later migrations that change rows
begin with `SET LOCAL ROLE polydev_worker`, or see none.
"""

from __future__ import annotations

from typing import NamedTuple

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_MINE = "{column} = (SELECT polydev_person())"


class _Own(NamedTuple):
    """What a person may do with rows that are theirs: columns by command, `*` for all."""

    whose: str = _MINE.format(column="user_id")
    written: str | None = None
    """What rows that they write must be like, where that is less than what they see."""
    select: str = ""
    insert: str = ""
    update: str = ""
    delete: bool = False


OWNED = {
    "users": _Own(
        _MINE.format(column="id"), select="id, email, created_at, role, disabled_at, deleting_at"
    ),
    "passwords": _Own(),
    "identities": _Own(select="*"),
    "sign_ins": _Own(
        select="sign_in_id, user_id, source, user_agent, created_at, seen_at, expires_at",
        delete=True,
    ),
    "api_tokens": _Own(
        select="token_id, user_id, name, scopes, created_at, expires_at, last_used_at",
        insert="*",
        delete=True,
    ),
    "idempotency_keys": _Own(select="*", insert="*", update="status, body, taken_at", delete=True),
    "events": _Own(select="*", insert="*"),
    "audit_log": _Own(
        f"{_MINE.format(column='owner')} OR {_MINE.format(column='actor')}",
        written=f"{_MINE.format(column='owner')} AND {_MINE.format(column='actor')}",
        select="*",
        insert="*",
    ),
    "vms": _Own(select="*"),
    "auth_sessions": _Own(select="*"),
    "session_steps": _Own(
        "EXISTS (SELECT FROM auth_sessions WHERE auth_sessions.session_id ="
        " session_steps.session_id AND auth_sessions.user_id = (SELECT polydev_person()))",
        select="*",
    ),
    "credentials": _Own(
        select="credential_id, user_id, provider, key_id, created_at,"
        " vm_id, expires_at, checked_at, validity, revoked_at"
    ),
}

WORKERS_ONLY = (
    "invitations",
    "rate_limits",
    "hosts",
    "installation",
    "controllers",
    "shared_secrets",
    "vault_keys",
)

_PERSON_FUNCTION = """
CREATE FUNCTION polydev_person() RETURNS text
    LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog
    AS $$
        SELECT coalesce(
            nullif(current_setting('polydev.user_id', true), ''),
            nullif(current_setting('request.jwt.claims', true), '')::json ->> 'sub'
        )
    $$
"""

_APPEND_ONLY = """
CREATE FUNCTION polydev_append_only() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog
    AS $$
        BEGIN
            IF TG_OP = 'DELETE' THEN
                IF OLD.at < now() - interval '30 days' THEN
                    RETURN OLD;  -- what the retention of the audit log may remove
                END IF;
            END IF;
            RAISE EXCEPTION '% is append-only', TG_TABLE_NAME
                USING ERRCODE = 'insufficient_privilege';
        END
    $$
"""

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


def upgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    op.execute(_PERSON_FUNCTION)
    for table in (*OWNED, *WORKERS_ONLY):
        _close(table)
        op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO polydev_worker")
        op.execute(
            f"CREATE POLICY workers ON {table} TO polydev_worker"
            " USING (current_user = 'polydev_worker') WITH CHECK (current_user = 'polydev_worker')"
        )
    for table, own in OWNED.items():
        _open_to_its_person(table, own)
    _make_append_only("audit_log")
    op.execute(_REVOKE_FROM_OTHERS.format(table="alembic_version"))
    op.execute("ALTER TABLE alembic_version ENABLE ROW LEVEL SECURITY")
    op.execute("GRANT SELECT ON alembic_version TO polydev_worker")
    op.execute("CREATE POLICY workers ON alembic_version FOR SELECT TO polydev_worker USING (true)")


def _close(table: str) -> None:
    """Nobody sees a row, its owner included, but by a policy."""
    op.execute(_REVOKE_FROM_OTHERS.format(table=table))
    op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")


def _open_to_its_person(table: str, own: _Own) -> None:
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


def _make_append_only(table: str) -> None:
    op.execute(_APPEND_ONLY)
    op.execute(f"REVOKE UPDATE ON {table} FROM polydev_worker")
    for name, when, each in (
        ("append_only", "UPDATE OR TRUNCATE", "STATEMENT"),
        ("keep_what_is_young", "DELETE", "ROW"),
    ):
        op.execute(
            f"CREATE TRIGGER {name} BEFORE {when} ON {table}"
            f" FOR EACH {each} EXECUTE FUNCTION polydev_append_only()"
        )
