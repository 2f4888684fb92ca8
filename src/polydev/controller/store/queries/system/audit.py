"""Rows of `audit_log`: who did what to which, from where, and why. Append-only.

Whoever does something that changes anything records it in the same transaction. Nothing changes an
entry; only `prune` removes some, and on PostgreSQL the database itself refuses to let go of any
that is younger than 30 days.
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
    """An entry, with its number and time."""

    entry_id: int
    at: datetime
    entry: AuditEntry


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which entries are looked for; None: whichever."""

    actor: str | None = None
    owner: str | None = None
    subject: str | None = None
    action: str | None = None
    """Exactly, or all of a subject's with `machine.`."""
    since: datetime | None = None
    until: datetime | None = None
    concerning: UserId | None = None
    """What was done by them, or to what is theirs."""


async def record(connection: AsyncConnection, entry: AuditEntry) -> None:
    """Note what is done, in the transaction that does it."""
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
    connection: AsyncConnection, sought: AuditFilter, span: PageSpec | None = None
) -> list[RecordedEntry]:
    """Entries, the newest first."""
    query = sa.select(audit_log).where(*_conditions(sought))
    page = keyset.page(query, (audit_log.c.entry_id,), span, newest_first=True)
    return [_recorded(row) for row in await connection.execute(page)]


async def prune(connection: AsyncConnection, before: datetime) -> int:
    """Remove entries older than that, which must be 30 days ago at least. How many."""
    gone = await connection.execute(sa.delete(audit_log).where(audit_log.c.at < before))
    return int(gone.rowcount)


def _conditions(sought: AuditFilter) -> list[sa.ColumnElement[bool]]:
    table = audit_log.c
    wanted: list[sa.ColumnElement[bool]] = [
        column == value
        for column, value in (
            (table.actor, sought.actor),
            (table.owner, sought.owner),
            (table.subject, sought.subject),
        )
        if value is not None
    ]
    if sought.action is not None:
        whole = not sought.action.endswith(".")
        starts = table.action.startswith(sought.action, autoescape=True)
        wanted.append(table.action == sought.action if whole else starts)
    if sought.since is not None:
        wanted.append(table.at >= sought.since)
    if sought.until is not None:
        wanted.append(table.at < sought.until)
    if sought.concerning is not None:
        wanted.append(sa.or_(table.owner == sought.concerning, table.actor == sought.concerning))
    return wanted


def _bounded(text: str, limit: int = MAX_ID_CHARACTERS) -> str:
    """The text in one line of bounded length, without what could steer a terminal."""
    kept = "".join(char if char.isprintable() else " " for char in text[:limit])
    return kept.encode("utf-8", "replace").decode()


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
