"""Standby clones: paused browser machines that wait for the next login.

The pool creates them in the background, and takes one before it clones. Each is an internal machine
whose page is painted; a script in it waits for the config drive of the machine that it becomes.
Then its folder and its network attachment get that machine's name, and the guest is resumed. It
serves one login and is destroyed with it. Standby clones end with the agent.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass

from polydev.hostagent.machines.context import HostContext
from polydev.hostagent.machines.machine import PreparedMachine, RunningMachine, last_spec
from polydev.hostagent.machines.record import MachineRecord
from polydev.hostagent.machines.registry import MachineRegistry
from polydev.hostagent.resources.resource_usage import read_process
from polydev.hostagent.system.cancellation import run_in_thread_shielded, run_shielded
from polydev.hostagent.vmm.contract import ExitReport
from polydev.hostagent.warm_pool import guest_scripts, internal_machines
from polydev.hostagent.warm_pool.cloning import clone
from polydev.hostagent.warm_pool.cpu_priority import Priority
from polydev.hostagent.warm_pool.templates import Template
from polydev.shared.domain import MachineSize
from polydev.shared.errors import MachineBusy

log = logging.getLogger("polydev.hostagent")

STANDBY = "warm-waiting"
"""The purpose label of standby clones."""
_READY_NONCE = ""
"""A clone is ready already: nothing waits for its marker."""


@dataclass(frozen=True, slots=True, eq=False)
class _StandbyClone:
    template: Template
    prepared: PreparedMachine
    machine: RunningMachine
    priority: Priority
    renaming: guest_scripts.Script
    end: asyncio.Task[ExitReport]
    """Finishes if the VMM ends unexpectedly."""

    @property
    def vm_id(self) -> str:
        return self.prepared.record.vm_id


class StandbyClones:
    """The standby clones of one host. Each method completes or undoes its work if cancelled."""

    def __init__(self, host: HostContext, registry: MachineRegistry) -> None:
        self._host = host
        self._registry = registry
        self._waiting: list[_StandbyClone] = []
        self._reserved: dict[str, _StandbyClone] = {}
        """By the id of the machine that each becomes."""
        self._making: asyncio.Task[object] | None = None
        self._ending: set[asyncio.Task[None]] = set()

    @property
    def count(self) -> int:
        """Number of clones that are not reserved."""
        return len(self._waiting)

    @property
    def reserved(self) -> frozenset[str]:
        """Ids of the clones that are reserved for machines."""
        return frozenset(it.vm_id for it in self._reserved.values())

    def reserve(self, vm_id: str, shape: MachineSize) -> None:
        """Reserve a clone for a machine, if one of that shape waits."""
        fitting = (it for it in self._waiting if it.template.described.shape == shape)
        if (it := next(fitting, None)) is not None:
            self._waiting.remove(it)
            self._reserved[vm_id] = it

    def release(self, vm_id: str) -> None:
        """Return a reserved clone that was not taken."""
        if (it := self._reserved.pop(vm_id, None)) is not None:
            self._waiting.append(it)

    def held_bytes(self, vm_id: str) -> int:
        """Return the memory that a machine already has in its reserved clone."""
        it = self._reserved.get(vm_id)
        reading = None if it is None else read_process(it.machine.vmm.pid)
        return 0 if reading is None else reading.memory_bytes

    async def create(self, template: Template, limit_s: float) -> None:
        """Create one more standby clone; `evict` cancels it.

        Raises: TimeoutError, NoCapacity, and what `clone` raises; nothing is left then.
        """
        began, shape = time.monotonic(), template.described.shape
        self._making = asyncio.current_task()
        try:
            prepared = await internal_machines.create(
                self._host, self._registry, shape, STANDBY, fresh=False
            )
            vm_id, running = prepared.record.vm_id, self._registry.memory_mib()
            try:
                with self._host.admission.admitted(vm_id, shape.memory_mib, running):
                    it = await self._create_paused(template, prepared, limit_s)
            except BaseException:
                await internal_machines.destroy(self._host, self._registry, vm_id)
                raise
            self._waiting.append(it)
        finally:
            self._making = None
        log.info("standby clone %s created in %.2f s", vm_id, time.monotonic() - began)

    async def take(
        self, record: MachineRecord, template: Template
    ) -> tuple[MachineRecord, RunningMachine] | None:
        """Turn the reserved clone into the machine of a record; None if it does not fit.

        The caller sets the time limit. If it raises, the clone is gone, and the caller clears the
        record's folder.
        """
        it = self._reserved.get(record.vm_id)
        if it is None:
            return None
        if it.end.done() or not it.template.is_same(template):
            await self.end_reserved(record.vm_id)
            return None
        began = time.monotonic()
        it.end.cancel()
        try:
            taken, machine = await run_shielded(self._rename(it, record))
            await self._resume_as(it, machine)
        except BaseException:
            await run_shielded(self._end(it))
            raise
        finally:
            self._reserved.pop(record.vm_id, None)
        took_s = time.monotonic() - began
        log.info("%s: taken from standby in %.2f s, was %s", record.vm_id, took_s, it.vm_id)
        return taken, machine

    async def retain(self, template: Template | None) -> None:
        """Destroy the clones of any other template, and those that ended by themselves."""
        for it in list(self._waiting):
            if it.end.done() or template is None or not it.template.is_same(template):
                self._begin_to_end(it)
        await self._all_ended()

    async def evict(self) -> bool:
        """Destroy all unreserved clones, also one that is being created.

        Return True if there were any.
        """
        for it in list(self._waiting):
            self._begin_to_end(it)
        making = self._making
        if making is not None:
            making.cancel()
            await asyncio.wait({making})
        return await self._all_ended() or making is not None

    async def end_reserved(self, vm_id: str) -> bool:
        """Destroy the clone that is reserved for a machine. Return True if there was one."""
        it = self._reserved.get(vm_id)
        if it is not None:
            it.end.cancel()
            try:
                await run_shielded(self._end(it))
            finally:
                self._reserved.pop(vm_id, None)
        return it is not None

    def _begin_to_end(self, it: _StandbyClone) -> None:
        self._waiting.remove(it)
        it.end.cancel()
        ending = asyncio.create_task(self._end(it))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    async def _all_ended(self) -> bool:
        """Wait for the clones that are being destroyed. Return True if there were any."""
        ending = set(self._ending)
        if ending:
            await asyncio.wait(ending)
        return bool(ending)

    async def _create_paused(
        self, template: Template, prepared: PreparedMachine, limit_s: float
    ) -> _StandbyClone:
        """Clone a machine, wait for its page, start the rename script, pause it."""
        priority = Priority()
        async with asyncio.timeout(limit_s):
            machine = await clone(self._host, template, prepared, priority)
            self._registry.running[prepared.record.vm_id] = machine
            await guest_scripts.wait_first_paint(machine.channel)
            renaming = await guest_scripts.start_rename(machine.channel)
            machine.channel.suspend_keepalive()
            await machine.vmm.pause()
        end = asyncio.create_task(machine.vmm.wait())
        return _StandbyClone(template, prepared, machine, priority, renaming, end)

    async def _rename(
        self, it: _StandbyClone, record: MachineRecord
    ) -> tuple[MachineRecord, RunningMachine]:
        """Give a clone the id of the record's machine; it stays paused."""
        clone = it.prepared.record
        async with self._registry.lock_machine(it.vm_id):
            if it.vm_id not in self._registry.records or clone.place is None:
                raise MachineBusy(f"Standby clone {it.vm_id} was destroyed")
            renamed = clone.updated(
                vm_id=record.vm_id, labels=record.labels, created_at=record.created_at
            )
            await run_in_thread_shielded(it.prepared.folder.replace_folder_of, renamed)
            folder = self._host.folder(renamed.vm_id)
            machine = RunningMachine(folder, it.machine.vmm, it.machine.channel)
            self._registry.remove(it.vm_id)
            self._registry.records[renamed.vm_id] = renamed
            self._registry.running[renamed.vm_id] = machine
            machine.vmm.relocate(await last_spec(self._host, renamed))
            await self._host.network.rename(it.vm_id, renamed.vm_id)
            await self._host.provisioner.write_config(folder, renamed, clone.place, _READY_NONCE)
        return renamed, machine

    async def _resume_as(self, it: _StandbyClone, machine: RunningMachine) -> None:
        """Resume the guest as that machine. Raises GuestMisbehaved, ChannelLost, VmmFailed."""
        drive = await asyncio.to_thread(machine.folder.config_drive.read_bytes)
        await asyncio.to_thread(it.priority.restore)
        await machine.vmm.resume()
        machine.channel.resume_keepalive()
        await it.renaming.send(drive)
        await it.renaming.wait()
        await it.renaming.close()

    async def _end(self, it: _StandbyClone) -> None:
        """Kill a clone's VMM, and remove what it left under its own id."""
        with suppress(Exception):  # it has ended already, or a sweep will find it
            await it.machine.kill()
        for vm_id, machine in list(self._registry.running.items()):
            if machine.vmm is it.machine.vmm:
                del self._registry.running[vm_id]
        await internal_machines.destroy(self._host, self._registry, it.vm_id)
