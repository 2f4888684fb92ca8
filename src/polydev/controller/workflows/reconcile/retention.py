"""Retention: deletes old events, audit log entries, sessions and machines.

Several controllers may run it at once.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from datetime import timedelta

from polydev.controller.settings import ControllerSettings
from polydev.controller.store.engine.database import Database
from polydev.controller.store.queries.connect import sessions
from polydev.controller.store.queries.machines import machines
from polydev.controller.store.queries.system import audit, events, idempotency_keys
from polydev.shared.domain import now
from polydev.shared.errors import PolydevError

log = logging.getLogger("polydev.controller.workflows")

PERIOD_S = 3600.0


@dataclass(frozen=True, slots=True)
class Retention:
    """Deletes old rows periodically."""

    database: Database
    settings: ControllerSettings

    async def run(self) -> None:
        """Run until cancelled. Errors are retried next time."""
        while True:
            try:
                await self.run_once()
            except PolydevError as error:
                log.warning("cannot delete old rows: %s", error)
            except Exception:
                log.exception("deleting old rows failed")
            await asyncio.sleep(PERIOD_S)

    async def run_once(self) -> None:
        """Delete rows that are older than the settings allow."""
        at, keep = now(), self.settings
        async with self.database.write() as connection:
            old_events = await events.prune(
                connection, at - timedelta(days=keep.event_days), keep.events_each
            )
        async with self.database.write() as connection:
            old_entries = await audit.prune(connection, at - timedelta(days=keep.audit_days))
        async with self.database.write() as connection:
            await idempotency_keys.prune(connection, at - idempotency_keys.RETENTION)
        async with self.database.write() as connection:
            before = at - timedelta(days=keep.history_days)
            old_sessions = await sessions.prune(connection, before)
            old_machines = await machines.prune(connection, before)
        if old_sessions or old_machines:
            log.info("deleted %d old sessions and %d old machines", old_sessions, old_machines)
        if old_events or old_entries:
            log.info("deleted %d old events and %d old audit log entries", old_events, old_entries)
