"""Row-level security (PostgreSQL only).

Two roles act on the tables (`engine/roles.py`). `polydev_worker` sees every row of every table.
`polydev_person` sees what a user's requests need of that user's own rows, and no tables other than
those in `OWNED`. Policies check the user, not the role, so they also hold for other roles with
rights on the tables, such as Supabase's `authenticated`. The tables' owner sees no rows unless it
acts as a worker: later migrations that change rows begin with `SET LOCAL ROLE polydev_worker`.
"""

from __future__ import annotations

from alembic import op

from polydev.controller.store.migrations.row_level import (
    Own,
    close,
    mine,
    open_to_its_user,
    revoke_from_others,
)

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

OWNED = {
    "users": Own(mine("id"), select="id, email, created_at, role, disabled_at, deleting_at"),
    "passwords": Own(),
    "identities": Own(select="*"),
    "sign_ins": Own(
        select="sign_in_id, user_id, source, user_agent, created_at, seen_at, expires_at",
        delete=True,
    ),
    "api_tokens": Own(
        select="token_id, user_id, name, scopes, created_at, expires_at, last_used_at",
        insert="*",
        delete=True,
    ),
    "idempotency_keys": Own(select="*", insert="*", update="status, body, taken_at", delete=True),
    "events": Own(select="*", insert="*"),
    "audit_log": Own(
        f"{mine('owner')} OR {mine('actor')}",
        written=f"{mine('owner')} AND {mine('actor')}",
        select="*",
        insert="*",
    ),
    "vms": Own(select="*"),
    "auth_sessions": Own(select="*"),
    "session_steps": Own(
        "EXISTS (SELECT FROM auth_sessions WHERE auth_sessions.session_id ="
        " session_steps.session_id AND auth_sessions.user_id = (SELECT polydev_person()))",
        select="*",
    ),
    "credentials": Own(
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

_USER_FUNCTION = """
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
                    RETURN OLD;  -- retention may remove old entries
                END IF;
            END IF;
            RAISE EXCEPTION '% is append-only', TG_TABLE_NAME
                USING ERRCODE = 'insufficient_privilege';
        END
    $$
"""


def upgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    op.execute(_USER_FUNCTION)
    for table in (*OWNED, *WORKERS_ONLY):
        close(table)
    for table, own in OWNED.items():
        open_to_its_user(table, own)
    _make_append_only("audit_log")
    revoke_from_others("alembic_version")
    op.execute("ALTER TABLE alembic_version ENABLE ROW LEVEL SECURITY")
    op.execute("GRANT SELECT ON alembic_version TO polydev_worker")
    op.execute("CREATE POLICY workers ON alembic_version FOR SELECT TO polydev_worker USING (true)")


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
