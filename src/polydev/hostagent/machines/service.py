"""The service that operations, routes and health checks call for this host's machines.

It runs one operation at a time per machine, and different machines in parallel. Only `destroy` does
not wait: it cancels a creation, start or stop. Every operation is idempotent, and may be cancelled
at any point.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from polydev.hostagent.channel.contract import GuestConnection, GuestProgram
from polydev.hostagent.channel.file_browser import FileBrowser
from polydev.hostagent.machines import inventory, orphan_cleanup, recovery
from polydev.hostagent.machines.context import HostContext
from polydev.hostagent.machines.lifecycle import CloneSource, MachineLifecycle, NoClones
from polydev.hostagent.machines.record import MachineRecord
from polydev.hostagent.machines.registry import MachineRegistry
from polydev.shared.domain import MachineState
from polydev.shared.errors import MachineBusy
from polydev.shared.host_protocol import (
    CreateMachine,
    ExecRequest,
    HostMachineView,
    Inventory,
    RemoveFiles,
    Swept,
    WriteFiles,
)


class MachineService:
    """The machines of one host."""

    def __init__(
        self,
        host: HostContext,
        registry: MachineRegistry | None = None,
        clones: CloneSource | None = None,
    ) -> None:
        """`clones` supplies machines that are up already; without it every machine boots."""
        self._host = host
        self._registry = registry or MachineRegistry(host)
        self.clones = clones or NoClones(host, self._registry)
        self._lifecycle = MachineLifecycle(host, self._registry, self.clones)

    async def recover(self) -> None:
        """Take over from an earlier agent: adopt what runs, remove what is half created."""
        found = await recovery.recover(self._host)
        self._registry.load(found.records, found.running)

    async def close(self) -> None:
        """Detach from all machines; they run on."""
        await self._registry.detach()

    # Operations ------------------------------------------------------------------------------

    async def create(self, request: CreateMachine) -> HostMachineView:
        """Create and start a machine; a failure or cancellation leaves nothing but archived logs.

        A machine that exists is started if it is at rest: its VMM may have ended before the answer
        arrived. If that fails the machine stays, as failed.
        """
        async with self._registry.lock_machine(request.vm_id):
            work = self._lifecycle.create(request)
            await self._registry.run_cancellable(request.vm_id, work)
            return self._registry.view(request.vm_id)

    async def destroy(self, vm_id: str) -> None:
        """Cancel work on a machine, end it and remove all that belongs to it. Idempotent."""
        self._registry.cancel_work(vm_id)
        async with self._registry.lock_machine(vm_id):
            if record := self._registry.records.get(vm_id):
                await self._registry.save(record.updated(state=MachineState.DESTROYING))
            await self._lifecycle.destroy(vm_id)

    async def stop(self, vm_id: str) -> HostMachineView:
        """Shut the guest down, or kill it after a grace time; disk and address stay.

        A hibernated machine loses its memory.
        """
        async with self._registry.lock_machine(vm_id):
            record = self._registry.record(vm_id)
            machine = self._registry.running.get(vm_id)
            _require_created(record)
            if machine is not None:
                work = self._lifecycle.stop(record, machine)
                await self._registry.run_cancellable(vm_id, work)
            elif record.state is MachineState.HIBERNATED:
                await self._lifecycle.drop_memory(record)
            elif record.state is MachineState.STOPPING:  # an earlier stop was cancelled at its end
                await self._registry.save(record.updated(state=MachineState.STOPPED))
            return self.view(vm_id)

    async def start(self, vm_id: str, ready_timeout_s: float) -> HostMachineView:
        """Boot a machine at rest, or resume a hibernated one.

        If a boot fails the machine stays, as failed.
        """
        async with self._registry.lock_machine(vm_id):
            record = self._registry.record(vm_id)
            if record.state is not MachineState.RUNNING:
                _require_created(record)
                work = self._lifecycle.start(record, ready_timeout_s)
                await self._registry.run_cancellable(vm_id, work)
            return self.view(vm_id)

    async def hibernate(self, vm_id: str) -> HostMachineView:
        """Write a machine's memory to disk and end its VMM; if that fails it runs on."""
        async with self._registry.lock_machine(vm_id):
            record = self._registry.record(vm_id)
            if record.state is not MachineState.HIBERNATED:
                work = self._lifecycle.hibernate(record)
                await self._registry.run_cancellable(vm_id, work)
            return self.view(vm_id)

    async def forget(self, vm_id: str) -> None:
        """Remove the archived logs of a destroyed machine. Raises MachineBusy if it exists."""
        async with self._registry.lock_machine(vm_id):
            if vm_id in self._registry.records:
                raise MachineBusy(f"Machine {vm_id} still exists", hint="Destroy it first")
            await asyncio.to_thread(self._host.log_archive.remove, vm_id)

    async def write_files(self, request: WriteFiles) -> HostMachineView:
        """Write files into a machine: through its channel while it runs, else into its disk."""
        files = [file.guest_file() for file in request.files]
        async with self._registry.lock_machine(request.vm_id):
            if record := self._registry.record_at_rest(request.vm_id):
                await self._host.provisioner.write_offline(record, files)
            else:
                await self._registry.channel(request.vm_id).write_files(files)
            return self.view(request.vm_id)

    async def remove_files(self, request: RemoveFiles) -> HostMachineView:
        """Delete files of a machine. Idempotent."""
        async with self._registry.lock_machine(request.vm_id):
            if record := self._registry.record_at_rest(request.vm_id):
                await self._host.provisioner.remove_offline(record, request.paths)
            else:
                await self._registry.channel(request.vm_id).remove_files(request.paths)
            return self.view(request.vm_id)

    # Queries ---------------------------------------------------------------------------------

    def views(self) -> list[HostMachineView]:
        """Return all machines, oldest first."""
        records = sorted(self._registry.records.values(), key=lambda record: record.created_at)
        return [self.view(record.vm_id) for record in records]

    def records(self) -> list[MachineRecord]:
        """Return the record of each machine."""
        return list(self._registry.records.values())

    def vmm_pids(self) -> dict[str, int]:
        """Return the VMM's process id of each running machine."""
        return {vm_id: machine.vmm.pid for vm_id, machine in self._registry.running.items()}

    def known(self) -> list[str]:
        """Return the ids of all machines."""
        return list(self._registry.records)

    def view(self, vm_id: str) -> HostMachineView:
        """Return one machine. Raises NoSuchMachine."""
        return self._registry.view(vm_id)

    def console_log(self, vm_id: str) -> Path:
        """Return the path of a machine's console log, archived or not. Raises NoSuchMachine."""
        if vm_id in self._registry.records:
            return self._host.folder(vm_id).console_log
        return self._archived(vm_id, self._host.log_archive.console_log(vm_id))

    def error_log(self, vm_id: str) -> Path:
        """Return the path of a machine's error log, archived or not. Raises NoSuchMachine."""
        if vm_id in self._registry.records:
            return self._host.folder(vm_id).error_log
        return self._archived(vm_id, self._host.log_archive.error_log(vm_id))

    async def inventory(self) -> Inventory:
        """Inspect the host for everything that machines have on it."""
        return await inventory.inspect(
            self._host, list(self._registry.records), dict(self._registry.running)
        )

    async def sweep(self) -> Swept:
        """Remove everything that belongs to no machine."""
        return await orphan_cleanup.sweep(
            self._host, self._registry.records, self._registry.lock_machine
        )

    # Access to guests ------------------------------------------------------------------------

    def require_running(self, vm_id: str) -> None:
        """Raise NoSuchMachine, or MachineBusy if it does not run."""
        self._registry.channel(vm_id)

    async def exec(self, vm_id: str, request: ExecRequest) -> GuestProgram:
        """Start a program in a running machine."""
        return await self._registry.channel(vm_id).exec(request)

    async def open_tcp(self, vm_id: str, port: int) -> GuestConnection:
        """Connect to a port on a running machine's 127.0.0.1."""
        return await self._registry.channel(vm_id).open_tcp(port)

    def file_browser(self, vm_id: str) -> FileBrowser:
        """Return access to the files of a running machine."""
        return self._registry.channel(vm_id).file_browser()

    async def read_file(self, vm_id: str, path: str, max_bytes: int) -> bytes:
        """Read a file of a machine, running or not.

        Raises: NoSuchFile; GuestMisbehaved if it is larger than `max_bytes`.
        """
        if self._registry.record_at_rest(vm_id):
            async with self._registry.lock_machine(vm_id):
                if record := self._registry.record_at_rest(vm_id):
                    return await self._host.provisioner.read_offline(record, path, max_bytes)
        return await self._registry.channel(vm_id).read_file(path, max_bytes)

    def _archived(self, vm_id: str, path: Path) -> Path:
        if not path.exists():
            self._registry.record(vm_id)
        return path


def _require_created(record: MachineRecord) -> None:
    """Raises MachineBusy for a machine that is being created: callers do not wait for that here."""
    if record.state is MachineState.CREATING:
        raise MachineBusy(f"Machine {record.vm_id} is {record.state}", hint="Destroy it, or wait")
