"""Queries of `audit_log`: actions with actor, subject, source and reason.

A change is recorded in its own transaction. Entries never change; only `prune` deletes old ones,
and PostgreSQL itself refuses to delete any younger than 30 days.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.store.engine import keyset
from polydev.controller.store.engine.keyset import PageSpec
from polydev.controller.store.tables import audit_log
from polydev.controller.telemetry import metrics
from polydev.shared.domain import AuditEntry, UserId, now

MAX_ID_CHARACTERS = 128
MAX_REASON_CHARACTERS = 500
RECONCILER = "reconciler"

_ACTION = re.compile(r"[a-z][a-z-]{0,31}\.[a-z][a-z-]{0,31}")


@dataclass(frozen=True, slots=True)
class RecordedEntry:
    """An entry with its id and time."""

    entry_id: int
    at: datetime
    entry: AuditEntry


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Conditions on entries; None means any."""

    actor: str | None = None
    owner: str | None = None
    subject: str | None = None
    action: str | None = None
    """An exact action, or a prefix that ends in a dot."""
    since: datetime | None = None
    until: datetime | None = None
    concerning: UserId | None = None
    """Actions of this user, or on their resources."""


async def record(connection: AsyncConnection, entry: AuditEntry) -> None:
    """Record an action in the transaction that performs it."""
    if not _ACTION.fullmatch(entry.action):
        raise ValueError(f"not an action: {entry.action!r}")
    await connection.execute(
        sa.insert(audit_log).values(
            at=now(),
            actor=_bounded(entry.actor),
            action=entry.action,
            subject=_bounded(entry.subject),
            owner=entry.owner,
            via=_bounded(entry.via),
            source=_bounded(entry.source),
            reason=_bounded(entry.reason, MAX_REASON_CHARACTERS),
        )
    )
    metrics.audited.labels(entry.action).inc()
    if entry.via == RECONCILER:
        metrics.reconciled.labels(entry.action).inc()


async def list_entries(
    connection: AsyncConnection, audit_filter: AuditFilter, span: PageSpec | None = None
) -> list[RecordedEntry]:
    """List entries, newest first."""
    query = sa.select(audit_log).where(*_conditions(audit_filter))
    page = keyset.page(query, (audit_log.c.entry_id,), span, newest_first=True)
    return [_recorded(row) for row in await connection.execute(page)]


async def prune(connection: AsyncConnection, before: datetime) -> int:
    """Delete entries older than `before` (at least 30 days ago).

    Return their number.
    """
    deleted = await connection.execute(sa.delete(audit_log).where(audit_log.c.at < before))
    return int(deleted.rowcount)


def _conditions(audit_filter: AuditFilter) -> list[sa.ColumnElement[bool]]:
    table = audit_log.c
    conditions: list[sa.ColumnElement[bool]] = [
        column == value
        for column, value in (
            (table.actor, audit_filter.actor),
            (table.owner, audit_filter.owner),
            (table.subject, audit_filter.subject),
        )
        if value is not None
    ]
    if audit_filter.action is not None:
        whole = not audit_filter.action.endswith(".")
        starts = table.action.startswith(audit_filter.action, autoescape=True)
        conditions.append(table.action == audit_filter.action if whole else starts)
    if audit_filter.since is not None:
        conditions.append(table.at >= audit_filter.since)
    if audit_filter.until is not None:
        conditions.append(table.at < audit_filter.until)
    if audit_filter.concerning is not None:
        conditions.append(
            sa.or_(table.owner == audit_filter.concerning, table.actor == audit_filter.concerning)
        )
    return conditions


def _bounded(text: str, limit: int = MAX_ID_CHARACTERS) -> str:
    """Shorten a text to one line without control characters."""
    line = "".join(char if char.isprintable() else " " for char in text[:limit])
    return line.encode("utf-8", "replace").decode()


def _recorded(row: sa.Row[Any]) -> RecordedEntry:
    entry = AuditEntry(
        actor=row.actor,
        action=row.action,
        subject=row.subject,
        owner=None if row.owner is None else UserId(row.owner),
        via=row.via,
        source=row.source,
        reason=row.reason,
    )
    return RecordedEntry(row.entry_id, row.at, entry)
