"""Cleanup of orphans: machines on hosts that no row accounts for.

A machine is destroyed if its label names this installation, or if its row is on another host or
destroyed. Other machines may belong to another Polydev, so `polydev doctor` only reports them.
Resources without a label (VMMs, TAPs, addresses, folders) are swept by each host agent.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from polydev.controller.store.engine.database import Database
from polydev.controller.store.queries.machines import machines
from polydev.controller.store.queries.system import audit
from polydev.controller.store.queries.system.audit import AuditFilter
from polydev.controller.workflows.machines.machine_operations import MachineOperations
from polydev.shared.domain import AuditEntry, HostId, MachineState, UserId, VmId
from polydev.shared.errors import NoSuchMachine, PolydevError
from polydev.shared.host_client import HostClient
from polydev.shared.host_protocol import HostMachineView, Swept

log = logging.getLogger("polydev.controller.workflows")

Seen = dict[HostId, dict[str, HostMachineView]]
"""Machines by host and id, without hosts that do not answer."""


@dataclass(frozen=True, slots=True)
class OrphanCleanup:
    """Finds and removes orphans."""

    database: Database
    machines: MachineOperations

    async def list_all(self) -> Seen:
        """List all machines of all hosts that answer."""
        hosts = self.machines.hosts.clients()
        views = await asyncio.gather(*(_views(host_id, host) for host_id, host in hosts.items()))
        return {host_id: found for host_id, found in views if found is not None}

    async def remove(self, there: Seen) -> None:
        """Destroy orphans, and let hosts sweep. `there` must be older than the caller's rows."""
        for host_id, views in there.items():
            try:
                for view in views.values():
                    await self._machine(host_id, view)
                await self._sweep(host_id)
            except PolydevError as error:
                log.warning("cannot clean up host %s now: %s", host_id, error.line())

    async def _machine(self, host_id: HostId, view: HostMachineView) -> None:
        async with self.database.read() as connection:
            row = await machines.find(connection, VmId(view.vm_id))
        if row is None:
            if view.labels.get("installation") != self.machines.installation:
                return
            why = f"it has no row, but the label of this installation, on host {host_id}"
        elif row.host_id != host_id:
            why = f"it was left on host {host_id}; the machine is on {row.host_id} now"
        elif row.status is MachineState.DESTROYED:
            why = f"it was left on host {host_id}; its row is destroyed"
        else:
            return
        if not await self._is_still_there(host_id, view.vm_id):
            return
        log.warning("destroying %s: %s", view.vm_id, why)
        owner = None if row is None else row.user_id
        await self._record_reason(entry("machine.destroy", view.vm_id, owner, why))
        await self.machines.destroy_at(host_id, VmId(view.vm_id))

    async def _record_reason(self, removal: AuditEntry) -> None:
        """Record the reason before the removal, and once for all attempts."""
        async with self.database.write() as connection:
            recorded = await audit.list_entries(
                connection, AuditFilter(subject=removal.subject, action=removal.action)
            )
            if removal.via not in {it.entry.via for it in recorded}:
                await audit.record(connection, removal)

    async def _is_still_there(self, host_id: HostId, vm_id: str) -> bool:
        try:
            await self.machines.hosts.client(host_id).machine(vm_id)
        except NoSuchMachine:
            return False
        return True

    async def _sweep(self, host_id: HostId) -> None:
        swept = await self.machines.hosts.client(host_id).sweep()
        removed = _describe(swept)
        if not removed:
            return
        log.warning("host %s removed resources of no machine: %s", host_id, removed)
        async with self.database.write() as connection:
            why = f"resources of no machine: {removed}"
            await audit.record(connection, entry("host.sweep", host_id, None, why))


def entry(action: str, subject: str, owner: UserId | None, reason: str) -> AuditEntry:
    """Build an audit log entry of the reconciler."""
    return AuditEntry("controller", action, subject, owner, via="reconciler", reason=reason)


async def _views(
    host_id: HostId, host: HostClient
) -> tuple[HostId, dict[str, HostMachineView] | None]:
    try:
        return host_id, {view.vm_id: view for view in await host.machines()}
    except PolydevError as error:
        log.warning("host %s: %s", host_id, error.line())
        return host_id, None


def _describe(swept: Swept) -> str:
    what = {
        "VMMs": [str(pid) for pid in swept.processes],
        "folders": swept.folders,
        "addresses": swept.addresses,
        "TAPs": swept.taps,
        "sockets": swept.sockets,
    }
    return "; ".join(f"{name} {', '.join(found)}" for name, found in what.items() if found)
