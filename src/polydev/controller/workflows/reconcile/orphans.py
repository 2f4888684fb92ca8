"""What is on hosts and belongs to no row: machines, and the TAPs, addresses, disks of none.

The reconciler uses it. A machine is destroyed if its label says that it is this installation's, or
if a row says so that is on another host or destroyed by now; any other may be another Polydev's,
and is `polydev doctor`'s to tell. What bears no label is each host agent's own to sweep.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from polydev.controller.store.engine.database import Database
from polydev.controller.store.queries.machines import machines
from polydev.controller.store.queries.system import audit
from polydev.controller.store.queries.system.audit import AuditFilter
from polydev.controller.workflows.machines.machines import MachineOperations
from polydev.shared.domain import AuditEntry, HostId, MachineState, UserId, VmId
from polydev.shared.errors import NoSuchMachine, PolydevError
from polydev.shared.host_client import Host
from polydev.shared.host_protocol import MachineView, Swept

log = logging.getLogger("polydev.controller.workflows")

Seen = dict[HostId, dict[str, MachineView]]
"""By host, and by id: what is there. Hosts that do not answer are not in it."""


@dataclass(frozen=True, slots=True)
class OrphanCleanup:
    """Looks, and removes."""

    database: Database
    machines: MachineOperations

    async def list_all(self) -> Seen:
        """All machines of all hosts that answer."""
        hosts = self.machines.hosts.every()
        views = await asyncio.gather(*(_views(host_id, host) for host_id, host in hosts.items()))
        return {host_id: found for host_id, found in views if found is not None}

    async def remove(self, there: Seen) -> None:
        """Destroy machines that are nobody's, and have hosts sweep. `there` was seen before the
        rows that the caller has read since."""
        for host_id, views in there.items():
            try:
                for view in views.values():
                    await self._machine(host_id, view)
                await self._sweep(host_id)
            except PolydevError as error:
                log.warning("host %s cannot be put right now: %s", host_id, error.line())

    async def _machine(self, host_id: HostId, view: MachineView) -> None:
        async with self.database.read() as connection:
            row = await machines.find(connection, VmId(view.vm_id))
        if row is None:
            if view.labels.get("installation") != self.machines.installation:
                return
            why = f"no row has it; its label says that it is ours, on host {host_id}"
        elif row.host_id != host_id:
            why = f"it was left on host {host_id}, and is now on {row.host_id}"
        elif row.status is MachineState.DESTROYED:
            why = f"its row is destroyed; it was left on host {host_id}"
        else:
            return
        if not await self._is_still_there(host_id, view.vm_id):
            return
        log.warning("destroying %s: %s", view.vm_id, why)
        owner = None if row is None else row.user_id
        await self._explain(entry("machine.destroy", view.vm_id, owner, why))
        await self.machines.destroy_at(host_id, VmId(view.vm_id))

    async def _explain(self, deed: AuditEntry) -> None:
        """Say why before it is done, so that nothing goes without a reason; and once, however often
        it has to be tried."""
        async with self.database.write() as connection:
            told = await audit.list_entries(
                connection, AuditFilter(subject=deed.subject, action=deed.action)
            )
            if deed.via not in {it.entry.via for it in told}:
                await audit.record(connection, deed)

    async def _is_still_there(self, host_id: HostId, vm_id: str) -> bool:
        try:
            await self.machines.hosts.of(host_id).machine(vm_id)
        except NoSuchMachine:
            return False
        return True

    async def _sweep(self, host_id: HostId) -> None:
        swept = await self.machines.hosts.of(host_id).sweep()
        words = _words(swept)
        if not words:
            return
        log.warning("host %s removed what belonged to no machine: %s", host_id, words)
        async with self.database.write() as connection:
            why = f"belonged to no machine: {words}"
            await audit.record(connection, entry("host.sweep", host_id, None, why))


def entry(action: str, subject: str, owner: UserId | None, reason: str) -> AuditEntry:
    """What the audit log says of the reconciler's deeds."""
    return AuditEntry("controller", action, subject, owner, via="reconciler", reason=reason)


async def _views(host_id: HostId, host: Host) -> tuple[HostId, dict[str, MachineView] | None]:
    try:
        return host_id, {view.vm_id: view for view in await host.machines()}
    except PolydevError as error:
        log.warning("host %s: %s", host_id, error.line())
        return host_id, None


def _words(swept: Swept) -> str:
    what = {
        "VMMs": [str(pid) for pid in swept.processes],
        "folders": swept.folders,
        "addresses": swept.addresses,
        "TAPs": swept.taps,
        "sockets": swept.sockets,
    }
    return "; ".join(f"{name} {', '.join(found)}" for name, found in what.items() if found)
