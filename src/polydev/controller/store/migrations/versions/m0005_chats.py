"""Chats with their turns, events and permission requests."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from polydev.controller.store.migrations.row_level import Own, close, open_to_its_user

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    _create_chats()
    _create_turns()
    _create_events()
    _create_permissions()
    if op.get_bind().dialect.name == "postgresql":
        for table in ("chats", "chat_turns", "chat_events", "chat_permissions"):
            close(table)
            open_to_its_user(table, Own(select="*"))


def _create_chats() -> None:
    op.create_table(
        "chats",
        sa.Column("chat_id", sa.Text, primary_key=True),
        sa.Column("user_id", sa.Text, sa.ForeignKey("users.id"), nullable=False),
        sa.Column("provider", sa.Text, nullable=False),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("titled_by", sa.Text, nullable=False),
        sa.Column("vm_id", sa.Text),
        sa.Column("acp_session_id", sa.Text),
        sa.Column("turn", sa.Integer, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("executor_id", sa.Text),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("updated_at", _TIME, nullable=False),
    )
    op.create_index("chats_by_person", "chats", ["user_id", "created_at"])
    at_work = sa.text("status != 'idle'")
    op.create_index(
        "chats_at_work", "chats", ["status"], sqlite_where=at_work, postgresql_where=at_work
    )


def _create_turns() -> None:
    op.create_table(
        "chat_turns",
        sa.Column("chat_id", sa.Text, sa.ForeignKey("chats.chat_id"), primary_key=True),
        sa.Column("turn", sa.Integer, primary_key=True),
        sa.Column("user_id", sa.Text, sa.ForeignKey("users.id"), nullable=False),
        sa.Column("prompt", sa.Text, nullable=False),
        sa.Column("bytes", sa.Integer, nullable=False),
        sa.Column("stop_requested_at", _TIME),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("ended_at", _TIME),
        sa.Column("reason", sa.Text),
    )
    op.create_index("ix_chat_turns_user_id", "chat_turns", ["user_id"])


def _create_events() -> None:
    op.create_table(
        "chat_events",
        sa.Column("chat_id", sa.Text, sa.ForeignKey("chats.chat_id"), primary_key=True),
        sa.Column("event_id", sa.BigInteger, primary_key=True),
        sa.Column("user_id", sa.Text, sa.ForeignKey("users.id"), nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("data", sa.JSON, nullable=False),
        sa.Column("at", _TIME, nullable=False),
    )
    op.create_index("ix_chat_events_user_id", "chat_events", ["user_id"])


def _create_permissions() -> None:
    op.create_table(
        "chat_permissions",
        sa.Column("chat_id", sa.Text, sa.ForeignKey("chats.chat_id"), primary_key=True),
        sa.Column("request_id", sa.Text, primary_key=True),
        sa.Column("user_id", sa.Text, sa.ForeignKey("users.id"), nullable=False),
        sa.Column("turn", sa.Integer, nullable=False),
        sa.Column("options", sa.JSON, nullable=False),
        sa.Column("option_id", sa.Text),
        sa.Column("asked_at", _TIME, nullable=False),
        sa.Column("answered_at", _TIME),
    )
    op.create_index("ix_chat_permissions_user_id", "chat_permissions", ["user_id"])
