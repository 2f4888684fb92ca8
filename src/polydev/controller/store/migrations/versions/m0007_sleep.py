"""Hibernation: last use, and how machines hibernated and resumed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)

_COLUMNS = (
    ("used_at", _TIME),
    ("slept_at", _TIME),
    ("slept_why", sa.Text),
    ("sleep_trouble", sa.Text),
    ("woke_at", _TIME),
    ("woke_why", sa.Text),
    ("woke_how", sa.Text),
    ("boot_reason", sa.Text),
    ("wake_took_s", sa.Float),
    ("memory_on_disk_bytes", sa.BigInteger),
)


def upgrade() -> None:
    # The users' role reads all columns of `vms`, so these too.
    for name, kind in _COLUMNS:
        op.add_column("vms", sa.Column(name, kind))
