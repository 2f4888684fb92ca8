"""API keys beside logins: a session's method, and a credential's kind."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table, column in (("auth_sessions", "method"), ("credentials", "kind")):
        op.add_column(table, sa.Column(column, sa.Text, nullable=False, server_default="login"))
    if op.get_bind().dialect.name == "postgresql":
        # The users' role reads only named columns of credentials, but all columns of sessions.
        op.execute("GRANT SELECT (kind) ON credentials TO polydev_person")
