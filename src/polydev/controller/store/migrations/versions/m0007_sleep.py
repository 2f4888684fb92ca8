"""Machines that sleep: when they were last used, why they slept and woke, and how."""

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
    # A person's role reads all columns of `vms`; these are among them.
    for name, kind in _COLUMNS:
        op.add_column("vms", sa.Column(name, kind))
