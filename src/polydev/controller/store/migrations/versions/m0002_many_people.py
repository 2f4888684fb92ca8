"""Accounts, tokens, rate limits, hosts, controllers, the audit log and events."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)
_COUNTER = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.add_column("users", sa.Column("role", sa.Text, nullable=False, server_default="person"))
    op.add_column("users", sa.Column("disabled_at", _TIME))
    op.add_column("users", sa.Column("deleting_at", _TIME))
    op.execute("UPDATE users SET role = 'administrator' WHERE id = 'admin'")
    op.add_column("vms", sa.Column("host_id", sa.Text))
    op.create_index("ix_vms_host_id", "vms", ["host_id"])
    op.execute("UPDATE vms SET host_id = 'local'")
    op.add_column("vms", sa.Column("attempt", sa.Integer, nullable=False, server_default="0"))
    op.add_column("vms", sa.Column("destroyed_at", _TIME))
    op.execute("UPDATE vms SET destroyed_at = created_at WHERE status = 'destroyed'")
    op.add_column("credentials", sa.Column("vm_id", sa.Text))
    op.add_column("credentials", sa.Column("expires_at", _TIME))
    op.add_column("credentials", sa.Column("checked_at", _TIME))
    op.add_column("credentials", sa.Column("validity", sa.Text))
    op.add_column("credentials", sa.Column("revoked_at", _TIME))
    _create_sign_in()
    _create_request_limits()
    _create_hosts()
    _create_history()


def _create_sign_in() -> None:
    op.create_table(
        "passwords",
        sa.Column("user_id", sa.Text, sa.ForeignKey("users.id"), primary_key=True),
        sa.Column("hash", sa.Text, nullable=False),
        sa.Column("changed_at", _TIME, nullable=False),
    )
    op.create_table(
        "identities",
        sa.Column("issuer", sa.Text, primary_key=True),
        sa.Column("subject", sa.Text, primary_key=True),
        sa.Column("user_id", sa.Text, sa.ForeignKey("users.id"), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
    )
    op.create_index("ix_identities_user_id", "identities", ["user_id"])
    op.create_table(
        "sign_ins",
        sa.Column("sign_in_id", sa.Text, primary_key=True),
        sa.Column("user_id", sa.Text, sa.ForeignKey("users.id"), nullable=False),
        sa.Column("secret_hash", sa.Text, nullable=False, unique=True),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("user_agent", sa.Text, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("seen_at", _TIME, nullable=False),
        sa.Column("expires_at", _TIME, nullable=False),
    )
    op.create_index("ix_sign_ins_user_id", "sign_ins", ["user_id"])
    op.create_table(
        "api_tokens",
        sa.Column("token_id", sa.Text, primary_key=True),
        sa.Column("user_id", sa.Text, sa.ForeignKey("users.id"), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("secret_hash", sa.Text, nullable=False, unique=True),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("expires_at", _TIME),
        sa.Column("last_used_at", _TIME),
    )
    op.create_index("ix_api_tokens_user_id", "api_tokens", ["user_id"])
    op.create_table(
        "invitations",
        sa.Column("invitation_id", sa.Text, primary_key=True),
        sa.Column("secret_hash", sa.Text, nullable=False, unique=True),
        sa.Column("email", sa.Text),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("created_by", sa.Text, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("expires_at", _TIME, nullable=False),
        sa.Column("used_at", _TIME),
        sa.Column("used_by", sa.Text),
    )


def _create_request_limits() -> None:
    op.create_table(
        "rate_limits",
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("left", sa.Float, nullable=False),
        sa.Column("at", _TIME, nullable=False),
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("user_id", sa.Text, sa.ForeignKey("users.id"), primary_key=True),
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("request_hash", sa.Text, nullable=False),
        sa.Column("status", sa.Integer),
        sa.Column("body", sa.Text),
        sa.Column("taken_at", _TIME, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
    )


def _create_hosts() -> None:
    op.create_table(
        "hosts",
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
        sa.Column("seen_at", _TIME),
        sa.Column("created_at", _TIME, nullable=False),
    )
    op.create_table(
        "installation",
        sa.Column("installation_id", sa.Text, primary_key=True),
        sa.Column("created_at", _TIME, nullable=False),
    )
    op.create_table(
        "controllers",
        sa.Column("executor_id", sa.Text, primary_key=True),
        sa.Column("lease_until", _TIME, nullable=False),
        sa.Column("started_at", _TIME, nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("key_ids", sa.Text, nullable=False),
    )
    op.create_table(
        "shared_secrets",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("sealed", sa.Text, nullable=False),
        sa.Column("iv", sa.Text, nullable=False),
        sa.Column("tag", sa.Text, nullable=False),
        sa.Column("salt", sa.Text, nullable=False),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
    )


def _create_history() -> None:
    op.create_table(
        "audit_log",
        sa.Column("entry_id", _COUNTER, sa.Identity(), primary_key=True),
        sa.Column("at", _TIME, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("owner", sa.Text),
        sa.Column("via", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_audit_log_owner", "audit_log", ["owner"])
    op.create_index("audit_log_by_actor", "audit_log", ["actor", "entry_id"])
    op.create_index("audit_log_by_time", "audit_log", ["at"])
    op.create_table(
        "events",
        sa.Column("event_id", _COUNTER, sa.Identity(), primary_key=True),
        sa.Column("user_id", sa.Text, sa.ForeignKey("users.id"), nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("data", sa.JSON, nullable=False),
        sa.Column("at", _TIME, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("events_by_person", "events", ["user_id", "event_id"])
