"""The tables (SPEC section 6), as SQLAlchemy Core knows them.

Query modules use these; migrations do not, they say what was true when they were written. The
test of the migrations compares both.
"""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy.engine import Dialect


class UtcDateTime(sa.TypeDecorator[datetime]):
    """A point in time: aware datetimes in and out, UTC in the database."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a zone")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


metadata = sa.MetaData()

GONE_STATES = ("destroyed",)

users = sa.Table(
    "users",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("email", sa.Text, nullable=False, unique=True),
    sa.Column("created_at", UtcDateTime, nullable=False),
)

vms = sa.Table(
    "vms",
    metadata,
    sa.Column("vm_id", sa.Text, primary_key=True),
    sa.Column("user_id", sa.ForeignKey("users.id"), nullable=False, index=True),
    sa.Column("ip_address", sa.Text),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("vm_type", sa.Text, nullable=False),
    sa.Column("session_id", sa.Text),
    sa.Column("memory_mib", sa.Integer, nullable=False),
    sa.Column("vcpus", sa.Integer, nullable=False),
    sa.Column("disk_mib", sa.Integer, nullable=False),
    sa.Column("error_code", sa.Text),
    sa.Column("error", sa.Text),
    sa.Column("created_at", UtcDateTime, nullable=False),
)

auth_sessions = sa.Table(
    "auth_sessions",
    metadata,
    sa.Column("session_id", sa.Text, primary_key=True),
    sa.Column("user_id", sa.ForeignKey("users.id"), nullable=False),
    sa.Column("provider", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("step", sa.Text),
    sa.Column("oauth_url", sa.Text),
    sa.Column("own_browser_url", sa.Text),
    sa.Column("cli_vm_id", sa.Text),
    sa.Column("error_code", sa.Text),
    sa.Column("error", sa.Text),
    sa.Column("cancel_requested_at", UtcDateTime),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("expires_at", UtcDateTime, nullable=False),
    sa.Column("ended_at", UtcDateTime),
)

sa.Index(
    "one_live_session_per_provider",
    auth_sessions.c.user_id,
    auth_sessions.c.provider,
    unique=True,
    sqlite_where=auth_sessions.c.ended_at.is_(None),
    postgresql_where=auth_sessions.c.ended_at.is_(None),
)

session_steps = sa.Table(
    "session_steps",
    metadata,
    sa.Column("session_id", sa.ForeignKey("auth_sessions.session_id"), primary_key=True),
    sa.Column("step", sa.Text, primary_key=True),
    sa.Column("started_at", UtcDateTime, nullable=False),
    sa.Column("ended_at", UtcDateTime),
    sa.Column("outcome", sa.Text),
)

credentials = sa.Table(
    "credentials",
    metadata,
    sa.Column("credential_id", sa.Text, primary_key=True),
    sa.Column("user_id", sa.ForeignKey("users.id"), nullable=False),
    sa.Column("provider", sa.Text, nullable=False),
    sa.Column("encrypted_credentials", sa.Text, nullable=False),
    sa.Column("encryption_iv", sa.Text, nullable=False),
    sa.Column("encryption_tag", sa.Text, nullable=False),
    sa.Column("encryption_salt", sa.Text, nullable=False),
    sa.Column("key_id", sa.Text),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Index("credentials_by_person", "user_id", "provider"),
)

vault_keys = sa.Table(
    "vault_keys",
    metadata,
    sa.Column("key_id", sa.Text, primary_key=True),
    sa.Column("canary", sa.Text, nullable=False),
    sa.Column("canary_iv", sa.Text, nullable=False),
    sa.Column("canary_tag", sa.Text, nullable=False),
    sa.Column("canary_salt", sa.Text, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
)
