"""Test the audit log: filters, pages, and that entries never change."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from owned_rows import ANN, BEN
from sqlalchemy.exc import DBAPIError

from polydev.controller.settings import ControllerSettings
from polydev.controller.store.engine import event_outbox
from polydev.controller.store.engine.database import Database
from polydev.controller.store.engine.keyset import PageSpec
from polydev.controller.store.queries.accounts import users
from polydev.controller.store.queries.system import audit, events
from polydev.controller.store.queries.system.audit import AuditFilter
from polydev.controller.store.tables import audit_log
from polydev.controller.store.tables import events as events_table
from polydev.controller.workflows.reconcile.retention import Retention
from polydev.shared.domain import AuditEntry, User, UserId, now


@pytest.fixture(autouse=True)
async def _users(store: Database) -> None:
    async with store.write() as connection:
        for name in (ANN, BEN):
            await users.insert(connection, User(name, f"{name}@example.test", now()))


async def _record(store: Database, *entries: AuditEntry) -> None:
    for entry in entries:
        async with store.write() as connection:
            await audit.record(connection, entry)


async def _subjects(
    store: Database, audit_filter: AuditFilter, page_spec: PageSpec | None = None
) -> list[str]:
    async with store.read() as connection:
        return [
            it.entry.subject for it in await audit.list_entries(connection, audit_filter, page_spec)
        ]


async def test_entry_is_read_back_unchanged(store: Database) -> None:
    entry = AuditEntry(ANN, "machine.destroy", "vm-1", BEN, "sign-in", "192.0.2.7", "too loud")
    await _record(store, entry)
    async with store.read() as connection:
        (only,) = await audit.list_entries(connection, AuditFilter())
    assert only.entry == entry
    assert now() - only.at < timedelta(minutes=5)


async def test_entries_are_filtered(store: Database) -> None:
    before = now()
    await _record(
        store,
        AuditEntry(ANN, "machine.create", "a", ANN),
        AuditEntry(ANN, "machine.destroy", "b", BEN),
        AuditEntry(BEN, "machinery.oil", "c", BEN),
        AuditEntry("controller", "key.rotate", "d"),
    )
    for audit_filter, subjects in (
        (AuditFilter(), "dcba"),
        (AuditFilter(actor=ANN), "ba"),
        (AuditFilter(owner=BEN), "cb"),
        (AuditFilter(subject="c"), "c"),
        (AuditFilter(action="machine.destroy"), "b"),
        (AuditFilter(action="machine."), "ba"),
        (AuditFilter(action="%."), ""),
        (AuditFilter(actor=ANN, owner=BEN), "b"),
        (AuditFilter(concerning=ANN), "ba"),
        (AuditFilter(concerning=BEN), "cb"),
        (AuditFilter(since=before), "dcba"),
        (AuditFilter(until=before), ""),
        (AuditFilter(since=now()), ""),
    ):
        assert "".join(await _subjects(store, audit_filter)) == subjects, audit_filter


async def test_entries_are_paginated(store: Database) -> None:
    await _record(store, *(AuditEntry(ANN, "key.rotate", str(number)) for number in range(5)))
    assert await _subjects(store, AuditFilter(), PageSpec(2)) == ["4", "3"]
    async with store.read() as connection:
        last = (await audit.list_entries(connection, AuditFilter(), PageSpec(2)))[-1].entry_id
    assert await _subjects(store, AuditFilter(), PageSpec(2, (last,))) == ["2", "1"]


async def test_users_see_only_entries_that_concern_them(store: Database) -> None:
    await _record(
        store,
        AuditEntry(ANN, "machine.create", "own", ANN),
        AuditEntry(BEN, "machine.destroy", "to them", ANN),
        AuditEntry(ANN, "host.drain", "by them"),
        AuditEntry(BEN, "machine.create", "others", BEN),
    )
    async with store.read(ANN) as connection:
        found = await audit.list_entries(connection, AuditFilter(concerning=ANN))
    assert [it.entry.subject for it in found] == ["by them", "to them", "own"]


async def test_texts_are_shortened_to_one_line(store: Database) -> None:
    hostile = "x\x1b[2J\n\x00\u202e\ud800" + "y" * 5000
    await _record(store, AuditEntry(ANN, "key.rotate", hostile, via=hostile, reason=hostile))
    async with store.read() as connection:
        (only,) = await audit.list_entries(connection, AuditFilter())
    for text, limit in ((only.entry.subject, 128), (only.entry.via, 128), (only.entry.reason, 500)):
        assert text.isprintable()
        assert len(text) == limit


@pytest.mark.parametrize("action", ["x", "Machine.create", "machine.", "a.b\n", "vm-1.create/2"])
async def test_malformed_action_is_refused(store: Database, action: str) -> None:
    with pytest.raises(ValueError, match="not an action"):
        await _record(store, AuditEntry(ANN, action, "s"))


async def test_postgresql_refuses_changes_of_the_audit_log(store: Database) -> None:
    async with store.read() as connection:
        if connection.dialect.name != "postgresql":
            pytest.skip("SQLite knows no rights")
    await _record(store, AuditEntry(ANN, "key.rotate", "s"))
    for statement in (
        sa.update(audit_log).values(actor="ben"),
        sa.delete(audit_log),
        sa.text("TRUNCATE audit_log"),
    ):
        for who in (None, UserId("ann")):
            with pytest.raises(DBAPIError):
                async with store.write(who) as connection:
                    await connection.execute(statement)
    assert await _subjects(store, AuditFilter()) == ["s"]


async def test_old_entries_are_pruned(store: Database, tmp_path: Path) -> None:
    settings = ControllerSettings(state_dir=tmp_path, audit_days=60, event_days=2)
    async with store.write() as connection:
        for days in (100, 59):
            entry = {"actor": ANN, "action": "a.b", "via": "", "source": "", "reason": ""}
            at = now() - timedelta(days=days)
            await connection.execute(sa.insert(audit_log).values(**entry, subject=str(days), at=at))
            event = {"user_id": ANN, "kind": "machine", "data": {}, "subject": str(days)}
            await connection.execute(sa.insert(events_table).values(**event, at=at))
        await event_outbox.emit(connection, ANN, "machine", "new")
    await Retention(store, settings).run_once()
    assert await _subjects(store, AuditFilter()) == ["59"]
    async with store.read(ANN) as connection:
        assert [it.subject for it in await events.list_after(connection, ANN, 0)] == ["new"]
