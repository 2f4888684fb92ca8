"""The machines of this host: their records, their VMMs, their locks.

The registry saves a record to disk before it takes effect, and watches each VMM until it ends. It
starts, ends and removes nothing itself.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from weakref import WeakValueDictionary

from polydev.hostagent.channel.contract import GuestChannel
from polydev.hostagent.machines.context import HostContext
from polydev.hostagent.machines.machine import RunningMachine
from polydev.hostagent.machines.record import MachineRecord, end_changes, view_of
from polydev.hostagent.system.cancellation import run_in_thread_shielded
from polydev.hostagent.system.sandbox import UID_BASE
from polydev.shared.domain import MachineState
from polydev.shared.errors import MachineBusy, NoSuchMachine
from polydev.shared.host_protocol import CreateMachine, HostMachineView

log = logging.getLogger("polydev.hostagent")

_DETACH_LIMIT_S = 5.0
_HINTS = {MachineState.HIBERNATED: "Resume it first", MachineState.HIBERNATING: "Ask again"}


class MachineRegistry:
    """The machines of one host."""

    def __init__(self, host: HostContext) -> None:
        self._host = host
        self.records: dict[str, MachineRecord] = {}
        self.running: dict[str, RunningMachine] = {}
        self._watchers: dict[str, asyncio.Task[None]] = {}
        self._work: dict[str, asyncio.Task[None]] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def load(self, records: list[MachineRecord], running: dict[str, RunningMachine]) -> None:
        """Begin with the machines that an earlier agent left."""
        self.records = {record.vm_id: record for record in records}
        for vm_id, machine in running.items():
            self.watch(vm_id, machine)

    async def detach(self) -> None:
        """Detach from all machines; they run on."""
        for watcher in self._watchers.values():
            watcher.cancel()
        machines = list(self.running.values())
        self.running.clear()
        if machines:
            detaching = [asyncio.create_task(machine.detach()) for machine in machines]
            await asyncio.wait(detaching, timeout=_DETACH_LIMIT_S)

    # Queries ---------------------------------------------------------------------------------

    def record(self, vm_id: str) -> MachineRecord:
        """Return a machine's record. Raises NoSuchMachine."""
        record = self.records.get(vm_id)
        if record is None:
            raise NoSuchMachine(f"No machine {vm_id} on this host")
        return record

    def record_at_rest(self, vm_id: str) -> MachineRecord | None:
        """Return the record of a machine whose disk may be changed; None for any other."""
        record = self.record(vm_id)
        return record if record.state.is_at_rest else None

    def channel(self, vm_id: str) -> GuestChannel:
        """Return the channel of a running machine. Raises NoSuchMachine, MachineBusy."""
        record = self.record(vm_id)
        machine = self.running.get(vm_id)
        if machine is None or record.state is not MachineState.RUNNING:
            hint = _HINTS.get(record.state, "Start it first")
            raise MachineBusy(f"Machine {vm_id} is {record.state}", hint=hint)
        return machine.channel

    def view(self, vm_id: str) -> HostMachineView:
        """Return a machine in its wire form. Raises NoSuchMachine."""
        machine = self.running.get(vm_id)
        pid = machine.vmm.pid if machine else None
        return view_of(self.record(vm_id), self._host.folder(vm_id), pid)

    # Changes ---------------------------------------------------------------------------------

    async def save(self, record: MachineRecord) -> None:
        """Store a record in memory and on disk. Raises OSError."""
        self.records[record.vm_id] = record
        folder = self._host.folder(record.vm_id)
        await run_in_thread_shielded(folder.write, record)

    async def require_unused(self, vm_id: str) -> None:
        """Raise MachineBusy if a folder without a readable record has this id."""
        if await asyncio.to_thread(self._host.folder(vm_id).path.exists):
            raise MachineBusy(
                f"The folder of machine {vm_id} already exists, with an unreadable record",
                hint="Destroy it first",
            )

    async def save_token(self, request: CreateMachine) -> None:
        """Store the token of a requested machine, if it has one."""
        if request.token:
            folder = self._host.folder(request.vm_id)
            await run_in_thread_shielded(folder.write_token, request.token.get_secret_value())

    def add(self, request: CreateMachine) -> MachineRecord:
        """Add the record of a machine that is being created; `save` writes it to disk."""
        record = MachineRecord(
            vm_id=request.vm_id,
            machine_kind=request.machine_kind,
            **request.size.fields(),
            labels=request.labels,
            state=MachineState.CREATING,
            created_at=datetime.now(UTC),
            uid=self.free_uid(),
        )
        self.records[record.vm_id] = record
        return record

    async def save_running(self, record: MachineRecord, machine: RunningMachine) -> None:
        """Save the record of a started machine, and watch its VMM."""
        await self.save(record)
        self.watch(record.vm_id, machine)

    def memory_mib(self) -> dict[str, int]:
        """Return the memory of each machine that has a VMM."""
        started = self.records.keys() & self.running.keys()
        return {vm_id: self.records[vm_id].memory_mib for vm_id in started}

    def watch(self, vm_id: str, machine: RunningMachine) -> None:
        """Watch a VMM, and update its record if it ends unexpectedly."""
        self.running[vm_id] = machine
        self._watchers[vm_id] = asyncio.create_task(
            self._record_end(vm_id, machine), name=f"watch {vm_id}"
        )

    def unwatch(self, vm_id: str) -> None:
        """Stop watching a VMM that is about to be ended."""
        if watcher := self._watchers.pop(vm_id, None):
            watcher.cancel()

    def free_uid(self) -> int:
        """Return a user id that no machine has; a record takes it."""
        taken = {record.uid for record in self.records.values()}
        return next(uid for uid in itertools.count(UID_BASE) if uid not in taken)

    def remove(self, vm_id: str) -> None:
        """Remove a machine that is gone from the registry."""
        self.unwatch(vm_id)
        self.running.pop(vm_id, None)
        self.records.pop(vm_id, None)

    async def _record_end(self, vm_id: str, machine: RunningMachine) -> None:
        """Wait until a VMM ends unexpectedly, and record it."""
        report = await machine.vmm.wait()
        async with self.lock_machine(vm_id):
            if self.running.get(vm_id) is not machine:
                return
            self._watchers.pop(vm_id, None)
            await machine.kill()
            self.running.pop(vm_id, None)
            record = self.record(vm_id).updated(**end_changes(vm_id, report))
            log.warning("%s: %s", vm_id, record.error.message if record.error else "ended")
            await self.save(record)

    # Locks and cancellation ------------------------------------------------------------------

    @asynccontextmanager
    async def lock_machine(self, vm_id: str) -> AsyncIterator[None]:
        """Hold the lock of a machine: one operation at a time."""
        lock = self._locks.setdefault(vm_id, asyncio.Lock())
        async with lock:
            yield

    def cancel_work(self, vm_id: str) -> None:
        """Cancel the work that runs on a machine, if any; it undoes itself."""
        if work := self._work.get(vm_id):
            work.cancel()

    async def run_cancellable(self, vm_id: str, work: Coroutine[Any, Any, None]) -> None:
        """Run work that `cancel_work` cancels. Raises MachineBusy when it does."""
        task = asyncio.create_task(work)
        self._work[vm_id] = task
        try:
            await task
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current and current.cancelling():
                raise
            raise MachineBusy(f"Machine {vm_id} was destroyed during the operation") from None
        finally:
            del self._work[vm_id]
