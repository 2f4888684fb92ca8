"""What is kept only for a while: events, the audit log, and what ended long ago.

`app.py` runs it beside the API.
Several controllers may do it at once: what one has removed, the others do not find.
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
    """One round is `once`; `run` makes them for ever."""

    database: Database
    settings: ControllerSettings

    async def run(self) -> None:
        """Rounds until cancelled. What goes wrong in one is tried again in the next."""
        while True:
            try:
                await self.run_once()
            except PolydevError as error:
                log.warning("forgetting what is old: %s", error)
            except Exception:
                log.exception("forgetting what is old failed")
            await asyncio.sleep(PERIOD_S)

    async def run_once(self) -> None:
        """Remove what is older than the settings say."""
        at, keep = now(), self.settings
        async with self.database.write() as connection:
            told = await events.prune(
                connection, at - timedelta(days=keep.event_days), keep.events_each
            )
        async with self.database.write() as connection:
            noted = await audit.prune(connection, at - timedelta(days=keep.audit_days))
        async with self.database.write() as connection:
            await idempotency_keys.prune(connection, at - idempotency_keys.RETENTION)
        async with self.database.write() as connection:
            before = at - timedelta(days=keep.history_days)
            ended = await sessions.prune(connection, before)
            gone = await machines.prune(connection, before)
        if ended or gone:
            log.info("forgot %d old sessions and %d old machines", ended, gone)
        if told or noted:
            log.info("removed %d old events and %d old entries of the audit log", told, noted)
