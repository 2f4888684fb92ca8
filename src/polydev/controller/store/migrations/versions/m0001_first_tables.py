"""The first tables: users, vms, auth_sessions, session_steps, credentials, vault_keys."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "users",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("email", sa.Text, nullable=False, unique=True),
        sa.Column("created_at", _TIME, nullable=False),
    )
    op.create_table(
        "vms",
        sa.Column("vm_id", sa.Text, primary_key=True),
        sa.Column("user_id", sa.Text, sa.ForeignKey("users.id"), nullable=False),
        sa.Column("ip_address", sa.Text),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("vm_type", sa.Text, nullable=False),
        sa.Column("session_id", sa.Text),
        sa.Column("memory_mib", sa.Integer, nullable=False),
        sa.Column("vcpus", sa.Integer, nullable=False),
        sa.Column("disk_mib", sa.Integer, nullable=False),
        sa.Column("error_code", sa.Text),
        sa.Column("error", sa.Text),
        sa.Column("created_at", _TIME, nullable=False),
    )
    op.create_index("ix_vms_user_id", "vms", ["user_id"])
    _create_sessions()
    _create_vault()


def _create_sessions() -> None:
    op.create_table(
        "auth_sessions",
        sa.Column("session_id", sa.Text, primary_key=True),
        sa.Column("user_id", sa.Text, sa.ForeignKey("users.id"), nullable=False),
        sa.Column("provider", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("step", sa.Text),
        sa.Column("oauth_url", sa.Text),
        sa.Column("own_browser_url", sa.Text),
        sa.Column("cli_vm_id", sa.Text),
        sa.Column("error_code", sa.Text),
        sa.Column("error", sa.Text),
        sa.Column("cancel_requested_at", _TIME),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("expires_at", _TIME, nullable=False),
        sa.Column("ended_at", _TIME),
    )
    op.create_index(
        "one_live_session_per_provider",
        "auth_sessions",
        ["user_id", "provider"],
        unique=True,
        sqlite_where=sa.text("ended_at IS NULL"),
        postgresql_where=sa.text("ended_at IS NULL"),
    )
    op.create_table(
        "session_steps",
        sa.Column(
            "session_id", sa.Text, sa.ForeignKey("auth_sessions.session_id"), primary_key=True
        ),
        sa.Column("step", sa.Text, primary_key=True),
        sa.Column("started_at", _TIME, nullable=False),
        sa.Column("ended_at", _TIME),
        sa.Column("outcome", sa.Text),
    )


def _create_vault() -> None:
    op.create_table(
        "credentials",
        sa.Column("credential_id", sa.Text, primary_key=True),
        sa.Column("user_id", sa.Text, sa.ForeignKey("users.id"), nullable=False),
        sa.Column("provider", sa.Text, nullable=False),
        sa.Column("encrypted_credentials", sa.Text, nullable=False),
        sa.Column("encryption_iv", sa.Text, nullable=False),
        sa.Column("encryption_tag", sa.Text, nullable=False),
        sa.Column("encryption_salt", sa.Text, nullable=False),
        sa.Column("key_id", sa.Text),
        sa.Column("created_at", _TIME, nullable=False),
    )
    op.create_index("credentials_by_person", "credentials", ["user_id", "provider"])
    op.create_table(
        "vault_keys",
        sa.Column("key_id", sa.Text, primary_key=True),
        sa.Column("canary", sa.Text, nullable=False),
        sa.Column("canary_iv", sa.Text, nullable=False),
        sa.Column("canary_tag", sa.Text, nullable=False),
        sa.Column("canary_salt", sa.Text, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
    )
