"""Rows of `audit_log`: who did what to which, from where, and why. Append-only."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.domain import AuditEntry, now
from polydev.store.tables import audit_log


async def record(connection: AsyncConnection, entry: AuditEntry) -> None:
    """Note what is done, in the transaction that does it."""
    await connection.execute(
        sa.insert(audit_log).values(
            at=now(),
            actor=entry.actor,
            action=entry.action,
            subject=entry.subject,
            owner=entry.owner,
            via=entry.via,
            source=entry.source,
            reason=entry.reason,
        )
    )
