"""Tickets for the live view."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from polydev.controller.store.migrations.row_level import Own, close, open_to_its_user

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "view_tickets",
        sa.Column("secret_hash", sa.Text, primary_key=True),
        sa.Column("user_id", sa.Text, sa.ForeignKey("users.id"), nullable=False),
        sa.Column("session_id", sa.Text, nullable=False),
        sa.Column("holder", sa.Text, nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("ix_view_tickets_user_id", "view_tickets", ["user_id"])
    op.create_index("ix_view_tickets_expires_at", "view_tickets", ["expires_at"])
    if op.get_bind().dialect.name == "postgresql":
        close("view_tickets")
        open_to_its_user("view_tickets", Own(select="user_id, session_id, holder, expires_at"))
