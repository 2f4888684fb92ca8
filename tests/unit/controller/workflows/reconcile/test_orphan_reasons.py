"""Reason in the audit log for the destruction of an orphan."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from polydev.controller.store.engine.database import Database
from polydev.controller.store.queries.system import audit
from polydev.controller.store.queries.system.audit import AuditFilter
from polydev.controller.workflows.machines.machine_operations import MachineOperations
from polydev.controller.workflows.reconcile.orphans import OrphanCleanup, Seen
from polydev.shared.domain import HostId
from polydev.shared.errors import HostUnreachable

VM = "vm-0190b5a0-7c31-7b1e-8a55-000000000001"
HOST = HostId("here")


class OneHost:
    """A host with one orphan, which it destroys after `failures` failed attempts."""

    installation = "ours"

    def __init__(self, database: Database, failures: int) -> None:
        self.database = database
        self.failures = failures
        self.entries_seen: list[int] = []
        """Number of audit entries at each attempt."""
        self.hosts = SimpleNamespace(client=lambda _: self)

    async def machine(self, vm_id: str) -> None:
        assert vm_id == VM

    async def sweep(self) -> Any:
        return SimpleNamespace(processes=[], folders=[], addresses=[], taps=[], sockets=[])

    async def destroy_at(self, host_id: HostId, vm_id: str) -> None:
        self.entries_seen.append(len(await reasons(self.database)))
        if len(self.entries_seen) <= self.failures:
            raise HostUnreachable("The host does not answer")


async def reasons(database: Database) -> list[str]:
    async with database.read() as connection:
        found = await audit.list_entries(
            connection, AuditFilter(subject=VM, action="machine.destroy")
        )
    return [it.entry.reason for it in found]


async def test_reason_is_recorded_once_and_before_the_destruction(database: Database) -> None:
    host = OneHost(database, failures=2)
    view = SimpleNamespace(vm_id=VM, labels={"installation": "ours"})
    for _ in range(3):
        seen = cast(Seen, {HOST: {VM: view}})
        await OrphanCleanup(database, cast(MachineOperations, host)).remove(seen)
    assert host.entries_seen == [1, 1, 1]
    [reason] = await reasons(database)
    assert "the label of this installation" in reason
