"""Define the tables for SQLAlchemy Core.

Queries use these definitions. Migrations do not: each describes the schema of its time. A test
compares the result of all migrations with this module.
"""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy.engine import Dialect


class UtcDateTime(sa.TypeDecorator[datetime]):
    """A time: aware datetimes in Python, UTC in the database."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("time without a time zone")
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
    sa.Column("role", sa.Text, nullable=False, server_default="person"),
    sa.Column("disabled_at", UtcDateTime),
    sa.Column("deleting_at", UtcDateTime),
)

passwords = sa.Table(
    "passwords",
    metadata,
    sa.Column("user_id", sa.ForeignKey("users.id"), primary_key=True),
    sa.Column("hash", sa.Text, nullable=False),
    sa.Column("changed_at", UtcDateTime, nullable=False),
)

identities = sa.Table(
    "identities",
    metadata,
    sa.Column("issuer", sa.Text, primary_key=True),
    sa.Column("subject", sa.Text, primary_key=True),
    sa.Column("user_id", sa.ForeignKey("users.id"), nullable=False, index=True),
    sa.Column("created_at", UtcDateTime, nullable=False),
)

sign_ins = sa.Table(
    "sign_ins",
    metadata,
    sa.Column("sign_in_id", sa.Text, primary_key=True),
    sa.Column("user_id", sa.ForeignKey("users.id"), nullable=False, index=True),
    sa.Column("secret_hash", sa.Text, nullable=False, unique=True),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("user_agent", sa.Text, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("seen_at", UtcDateTime, nullable=False),
    sa.Column("expires_at", UtcDateTime, nullable=False),
)

api_tokens = sa.Table(
    "api_tokens",
    metadata,
    sa.Column("token_id", sa.Text, primary_key=True),
    sa.Column("user_id", sa.ForeignKey("users.id"), nullable=False, index=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("secret_hash", sa.Text, nullable=False, unique=True),
    sa.Column("scopes", sa.Text, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("expires_at", UtcDateTime),
    sa.Column("last_used_at", UtcDateTime),
)

view_tickets = sa.Table(
    "view_tickets",
    metadata,
    sa.Column("secret_hash", sa.Text, primary_key=True),
    sa.Column("user_id", sa.ForeignKey("users.id"), nullable=False, index=True),
    sa.Column("session_id", sa.Text, nullable=False),
    sa.Column("holder", sa.Text, nullable=False),
    sa.Column("expires_at", UtcDateTime, nullable=False, index=True),
)

invitations = sa.Table(
    "invitations",
    metadata,
    sa.Column("invitation_id", sa.Text, primary_key=True),
    sa.Column("secret_hash", sa.Text, nullable=False, unique=True),
    sa.Column("email", sa.Text),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("created_by", sa.Text, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("expires_at", UtcDateTime, nullable=False),
    sa.Column("used_at", UtcDateTime),
    sa.Column("used_by", sa.Text),
)

rate_limits = sa.Table(
    "rate_limits",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("left", sa.Float, nullable=False),
    sa.Column("at", UtcDateTime, nullable=False),
)

idempotency_keys = sa.Table(
    "idempotency_keys",
    metadata,
    sa.Column("user_id", sa.ForeignKey("users.id"), primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("request_hash", sa.Text, nullable=False),
    sa.Column("status", sa.Integer),
    sa.Column("body", sa.Text),
    sa.Column("taken_at", UtcDateTime, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
)

hosts = sa.Table(
    "hosts",
    metadata,
    sa.Column("host_id", sa.Text, primary_key=True),
    sa.Column("socket", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("memory_mib", sa.Integer, nullable=False),
    sa.Column("vcpus", sa.Integer, nullable=False),
    sa.Column("max_machines", sa.Integer, nullable=False),
    sa.Column("disk_free_mib", sa.Integer, nullable=False),
    sa.Column("driver", sa.Text, nullable=False),
    sa.Column("accelerator", sa.Text, nullable=False),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("seen_at", UtcDateTime),
    sa.Column("created_at", UtcDateTime, nullable=False),
)

installation = sa.Table(
    "installation",
    metadata,
    sa.Column("installation_id", sa.Text, primary_key=True),
    sa.Column("created_at", UtcDateTime, nullable=False),
)

controllers = sa.Table(
    "controllers",
    metadata,
    sa.Column("executor_id", sa.Text, primary_key=True),
    sa.Column("lease_until", UtcDateTime, nullable=False),
    sa.Column("started_at", UtcDateTime, nullable=False),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("key_ids", sa.Text, nullable=False),
)

shared_secrets = sa.Table(
    "shared_secrets",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("sealed", sa.Text, nullable=False),
    sa.Column("iv", sa.Text, nullable=False),
    sa.Column("tag", sa.Text, nullable=False),
    sa.Column("salt", sa.Text, nullable=False),
    sa.Column("key_id", sa.Text, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
)

_COUNTER = sa.BigInteger().with_variant(sa.Integer, "sqlite")

audit_log = sa.Table(
    "audit_log",
    metadata,
    sa.Column("entry_id", _COUNTER, sa.Identity(), primary_key=True),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("owner", sa.Text, index=True),
    sa.Column("via", sa.Text, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Index("audit_log_by_actor", "actor", "entry_id"),
    sa.Index("audit_log_by_time", "at"),
    sqlite_autoincrement=True,
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("event_id", _COUNTER, sa.Identity(), primary_key=True),
    sa.Column("user_id", sa.ForeignKey("users.id"), nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("data", sa.JSON, nullable=False),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Index("events_by_person", "user_id", "event_id"),
    sqlite_autoincrement=True,
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
    sa.Column("host_id", sa.Text, index=True),
    sa.Column("memory_mib", sa.Integer, nullable=False),
    sa.Column("vcpus", sa.Integer, nullable=False),
    sa.Column("disk_mib", sa.Integer, nullable=False),
    sa.Column("error_code", sa.Text),
    sa.Column("error", sa.Text),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False, server_default="0"),
    sa.Column("destroyed_at", UtcDateTime),
    sa.Column("used_at", UtcDateTime),
    sa.Column("slept_at", UtcDateTime),
    sa.Column("slept_why", sa.Text),
    sa.Column("sleep_trouble", sa.Text),
    sa.Column("woke_at", UtcDateTime),
    sa.Column("woke_why", sa.Text),
    sa.Column("woke_how", sa.Text),
    sa.Column("boot_reason", sa.Text),
    sa.Column("wake_took_s", sa.Float),
    sa.Column("memory_on_disk_bytes", sa.BigInteger),
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
    sa.Column("method", sa.Text, nullable=False, server_default="login"),
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
    sa.Column("vm_id", sa.Text),
    sa.Column("expires_at", UtcDateTime),
    sa.Column("checked_at", UtcDateTime),
    sa.Column("validity", sa.Text),
    sa.Column("revoked_at", UtcDateTime),
    sa.Column("kind", sa.Text, nullable=False, server_default="login"),
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

chats = sa.Table(
    "chats",
    metadata,
    sa.Column("chat_id", sa.Text, primary_key=True),
    sa.Column("user_id", sa.ForeignKey("users.id"), nullable=False),
    sa.Column("provider", sa.Text, nullable=False),
    sa.Column("title", sa.Text, nullable=False),
    sa.Column("titled_by", sa.Text, nullable=False),
    sa.Column("vm_id", sa.Text),
    sa.Column("acp_session_id", sa.Text),
    sa.Column("turn", sa.Integer, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("executor_id", sa.Text),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("updated_at", UtcDateTime, nullable=False),
    sa.Index("chats_by_person", "user_id", "created_at"),
)

sa.Index(
    "chats_at_work",
    chats.c.status,
    sqlite_where=chats.c.status != "idle",
    postgresql_where=chats.c.status != "idle",
)

chat_turns = sa.Table(
    "chat_turns",
    metadata,
    sa.Column("chat_id", sa.ForeignKey("chats.chat_id"), primary_key=True),
    sa.Column("turn", sa.Integer, primary_key=True),
    sa.Column("user_id", sa.ForeignKey("users.id"), nullable=False, index=True),
    sa.Column("prompt", sa.Text, nullable=False),
    sa.Column("bytes", sa.Integer, nullable=False),
    sa.Column("stop_requested_at", UtcDateTime),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("ended_at", UtcDateTime),
    sa.Column("reason", sa.Text),
)

chat_events = sa.Table(
    "chat_events",
    metadata,
    sa.Column("chat_id", sa.ForeignKey("chats.chat_id"), primary_key=True),
    sa.Column("event_id", sa.BigInteger, primary_key=True),
    sa.Column("user_id", sa.ForeignKey("users.id"), nullable=False, index=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("data", sa.JSON, nullable=False),
    sa.Column("at", UtcDateTime, nullable=False),
)

chat_permissions = sa.Table(
    "chat_permissions",
    metadata,
    sa.Column("chat_id", sa.ForeignKey("chats.chat_id"), primary_key=True),
    sa.Column("request_id", sa.Text, primary_key=True),
    sa.Column("user_id", sa.ForeignKey("users.id"), nullable=False, index=True),
    sa.Column("turn", sa.Integer, nullable=False),
    sa.Column("options", sa.JSON, nullable=False),
    sa.Column("option_id", sa.Text),
    sa.Column("asked_at", UtcDateTime, nullable=False),
    sa.Column("answered_at", UtcDateTime),
)
