"""Polls the health of all hosts, and keeps their rows up to date.

It also registers the hosts of the settings. Every controller polls; each answer updates the row,
and placement reads the rows.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path

from polydev.controller.settings import ControllerSettings
from polydev.controller.store.engine.database import Database
from polydev.controller.store.queries.machines import hosts as rows
from polydev.shared.domain import HostId, VmHost, now
from polydev.shared.errors import PolydevError
from polydev.shared.host_client import HostClient, HostClients
from polydev.shared.host_protocol import Health

log = logging.getLogger("polydev.controller.workflows")


@dataclass(frozen=True, slots=True)
class HostPoller:
    """Polls hosts periodically."""

    database: Database
    hosts: HostClients
    settings: ControllerSettings

    async def begin(self) -> None:
        """Register the hosts of the settings, and poll all hosts once."""
        async with self.database.write() as connection:
            for host_id, socket in self.settings.vm_hosts:
                await rows.register(connection, host_id, str(socket))
        await self.run_once()

    async def run(self) -> None:
        """Poll until cancelled. Errors are retried next time."""
        while True:
            await asyncio.sleep(self.settings.host_period_s)
            try:
                await self.run_once()
            except PolydevError as error:
                log.warning("cannot poll hosts: %s", error.line())
            except Exception as error:
                log.error("polling hosts failed: %s", type(error).__name__)

    async def run_once(self) -> None:
        """Poll every host, and update the rows of those that answer."""
        async with self.database.read() as connection:
            known = await rows.list_all(connection)
        await self.hosts.replace({it.host_id: Path(it.socket) for it in known})
        asked = self.hosts.clients()
        answers = await asyncio.gather(*(self._health(it, asked[it.host_id]) for it in known))
        heard = [(host_id, health) for host_id, health in answers if health is not None]
        if heard:
            async with self.database.write() as connection:
                for host_id, health in heard:
                    await rows.update_health(connection, host_id, health, now())

    async def _health(self, row: VmHost, host: HostClient) -> tuple[HostId, Health | None]:
        try:
            async with asyncio.timeout(self.settings.host_period_s):
                return row.host_id, await host.health()
        except (PolydevError, TimeoutError) as error:
            log.warning("host %s does not answer: %s", row.host_id, error)
            return row.host_id, None
