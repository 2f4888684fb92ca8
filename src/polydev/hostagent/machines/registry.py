"""Which machines this host has, which of them run, and who is at work on each.

`machines.py` and `hibernation.py` share one. A record is kept on disk before it counts; a VMM that
runs is watched to its end; one operation at a time is at work on a machine, and only destroying
cuts it short. It starts, ends and removes nothing by itself.
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
from polydev.hostagent.machines.record import MachineRecord, ended, view_of
from polydev.hostagent.system.cancellation import run_in_thread_shielded
from polydev.hostagent.system.sandbox import UID_BASE
from polydev.shared.domain import MachineState
from polydev.shared.errors import MachineBusy, NoSuchMachine
from polydev.shared.host_protocol import CreateMachine, MachineView

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

    # What is known ---------------------------------------------------------------------------

    def record(self, vm_id: str) -> MachineRecord:
        """Raises: NoSuchMachine."""
        record = self.records.get(vm_id)
        if record is None:
            raise NoSuchMachine(f"No machine {vm_id} on this host")
        return record

    def record_at_rest(self, vm_id: str) -> MachineRecord | None:
        """The record of a machine that has a disk, and nothing that would miss a change of it."""
        record = self.record(vm_id)
        return record if record.state.is_at_rest else None

    def channel(self, vm_id: str) -> GuestChannel:
        """Into a machine that runs. Raises: NoSuchMachine, MachineBusy."""
        record = self.record(vm_id)
        machine = self.running.get(vm_id)
        if machine is None or record.state is not MachineState.RUNNING:
            hint = _HINTS.get(record.state, "Start it first")
            raise MachineBusy(f"Machine {vm_id} is {record.state}", hint=hint)
        return machine.channel

    def view(self, vm_id: str) -> MachineView:
        """Raises: NoSuchMachine."""
        machine = self.running.get(vm_id)
        pid = machine.vmm.pid if machine else None
        return view_of(self.record(vm_id), self._host.folder(vm_id), pid)

    # What changes ----------------------------------------------------------------------------

    async def save(self, record: MachineRecord) -> None:
        """Keep a record, on disk too. Raises: OSError."""
        self.records[record.vm_id] = record
        folder = self._host.folder(record.vm_id)
        await run_in_thread_shielded(folder.write, record)

    def add(self, request: CreateMachine) -> MachineRecord:
        """Add the record of a machine that is being created; `save` writes it to disk."""
        record = MachineRecord(
            vm_id=request.vm_id,
            machine_kind=request.machine_kind,
            memory_mib=request.memory_mib,
            vcpus=request.vcpus,
            disk_mib=request.disk_mib,
            labels=request.labels,
            state=MachineState.CREATING,
            created_at=datetime.now(UTC),
            uid=self.free_uid(),
        )
        self.records[record.vm_id] = record
        return record

    async def save_running(self, record: MachineRecord, machine: RunningMachine) -> None:
        """Save the record of a machine that runs from now on, and watch its VMM."""
        await self.save(record)
        self.watch(record.vm_id, machine)

    def memory_mib(self) -> dict[str, int]:
        """The memory of each machine that has a VMM."""
        there = self.records.keys() & self.running.keys()
        return {vm_id: self.records[vm_id].memory_mib for vm_id in there}

    def watch(self, vm_id: str, machine: RunningMachine) -> None:
        """From now on a VMM that ends by itself is noticed."""
        self.running[vm_id] = machine
        self._watchers[vm_id] = asyncio.create_task(
            self._notice_end(vm_id, machine), name=f"watch {vm_id}"
        )

    def unwatch(self, vm_id: str) -> None:
        """Its end is our doing."""
        if watcher := self._watchers.pop(vm_id, None):
            watcher.cancel()

    def free_uid(self) -> int:
        """One that no machine's VMM runs as; it is taken once a record has it."""
        taken = {record.uid for record in self.records.values()}
        return next(uid for uid in itertools.count(UID_BASE) if uid not in taken)

    def remove(self, vm_id: str) -> None:
        """There is no such machine any more."""
        self.unwatch(vm_id)
        self.running.pop(vm_id, None)
        self.records.pop(vm_id, None)

    async def _notice_end(self, vm_id: str, machine: RunningMachine) -> None:
        """When a VMM ends by itself, or is ended from outside: say so in the machine's record."""
        report = await machine.vmm.wait()
        async with self.lock_machine(vm_id):
            if self.running.get(vm_id) is not machine:
                return
            self._watchers.pop(vm_id, None)
            await machine.kill()
            self.running.pop(vm_id, None)  # or it was let go meanwhile
            record = self.record(vm_id).updated(**ended(vm_id, report))
            log.warning("%s: %s", vm_id, record.error.message if record.error else "ended")
            await self.save(record)

    # Who is at work --------------------------------------------------------------------------

    @asynccontextmanager
    async def lock_machine(self, vm_id: str) -> AsyncIterator[None]:
        """One operation at a time on this machine."""
        lock = self._locks.setdefault(vm_id, asyncio.Lock())
        async with lock:
            yield

    def cancel_work(self, vm_id: str) -> None:
        """Have work on this machine undo itself and end, if there is any that may be cut."""
        if work := self._work.get(vm_id):
            work.cancel()

    async def run_cancellable(self, vm_id: str, work: Coroutine[Any, Any, None]) -> None:
        """Do work that destroying the machine cuts short."""
        task = asyncio.create_task(work)
        self._work[vm_id] = task
        try:
            await task
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current and current.cancelling():
                raise
            raise MachineBusy(f"Machine {vm_id} was destroyed meanwhile") from None
        finally:
            del self._work[vm_id]
