"""Clones that wait for whoever logs in next: restored, renewed, their page painted, standing still.

`warm_browsers.py` has them made in the background, and takes one before it clones. Each is a
machine of its own that is nobody's yet (`nobodys.py`), with a program in it that waits to be told
whose it becomes; then its folder and its place in the network get that machine's name, and its
guest goes on. It serves one login and dies with it, as any browser machine. An agent that ends
takes them with it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass

from polydev.hostagent.machines.context import HostContext
from polydev.hostagent.machines.machine import PreparedMachine, RunningMachine, spec_of
from polydev.hostagent.machines.record import MachineRecord
from polydev.hostagent.machines.registry import MachineRegistry
from polydev.hostagent.resources.resource_usage import read_process
from polydev.hostagent.system.cancellation import run_in_thread_shielded, run_shielded
from polydev.hostagent.vmm.contract import ExitReport
from polydev.hostagent.warm_pool import guest_scripts, internal_machines
from polydev.hostagent.warm_pool.cloning import clone
from polydev.hostagent.warm_pool.cpu_priority import Priority
from polydev.hostagent.warm_pool.templates import Shape, Template
from polydev.shared.errors import MachineBusy

log = logging.getLogger("polydev.hostagent")

WAITS = "warm-waiting"
_READY_NONCE = ""
"""It has been ready long ago: nobody listens for it."""


@dataclass(frozen=True, slots=True, eq=False)
class _StandbyClone:
    template: Template
    prepared: PreparedMachine
    machine: RunningMachine
    priority: Priority
    renaming: guest_scripts.Script
    end: asyncio.Task[ExitReport]
    """Of its VMM, should that end by itself."""

    @property
    def vm_id(self) -> str:
        return self.prepared.record.vm_id


class StandbyClones:
    """Of one host. What one is asked for it does or undoes whole, wherever it is cut."""

    def __init__(self, host: HostContext, registry: MachineRegistry) -> None:
        self._host = host
        self._registry = registry
        self._waiting: list[_StandbyClone] = []
        self._reserved: dict[str, _StandbyClone] = {}
        """By the machine that each is to be."""
        self._making: asyncio.Task[object] | None = None
        self._ending: set[asyncio.Task[None]] = set()

    @property
    def count(self) -> int:
        """How many wait for nobody yet."""
        return len(self._waiting)

    @property
    def reserved(self) -> frozenset[str]:
        """The names of those that wait for a machine that is being made."""
        return frozenset(it.vm_id for it in self._reserved.values())

    def reserve(self, vm_id: str, shape: Shape) -> None:
        """Keep one for a machine that is to be made, if one of that shape waits."""
        fitting = (it for it in self._waiting if it.template.described.shape == shape)
        if (it := next(fitting, None)) is not None:
            self._waiting.remove(it)
            self._reserved[vm_id] = it

    def release(self, vm_id: str) -> None:
        """Let the one that was kept for a machine, and was not taken, wait on."""
        if (it := self._reserved.pop(vm_id, None)) is not None:
            self._waiting.append(it)

    def held_bytes(self, vm_id: str) -> int:
        """The memory that a machine has already in the one that is kept for it."""
        it = self._reserved.get(vm_id)
        reading = None if it is None else read_process(it.machine.vmm.pid)
        return 0 if reading is None else reading.memory_bytes

    async def make(self, template: Template, limit_s: float) -> None:
        """Have one more wait; `give_way` cancels it. Raises: TimeoutError, NoCapacity, and as
        `clone`; nothing is left then."""
        began, shape = time.monotonic(), template.described.shape
        self._making = asyncio.current_task()
        try:
            prepared = await internal_machines.made(
                self._host, self._registry, shape, WAITS, fresh=False
            )
            vm_id, running = prepared.record.vm_id, self._registry.memory_mib()
            try:
                with self._host.admission.admitted(vm_id, shape.memory_mib, running):
                    it = await self._made(template, prepared, limit_s)
            except BaseException:
                await internal_machines.unmade(self._host, self._registry, vm_id)
                raise
            self._waiting.append(it)
        finally:
            self._making = None
        log.info("%s waits for a login, after %.2f s", vm_id, time.monotonic() - began)

    async def take(
        self, record: MachineRecord, template: Template
    ) -> tuple[MachineRecord, RunningMachine] | None:
        """The one that is kept for this record's machine, which has nothing yet; None if there is
        none, or none of that template.

        The caller sets the limit. When it raises, whatever it is, that clone is gone, and only the
        record's folder is to be cleared.
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
            mine, machine = await run_shielded(self._renamed(it, record))
            await self._told(it, machine)
        except BaseException:
            await run_shielded(self._end(it))
            raise
        finally:
            self._reserved.pop(record.vm_id, None)
        took_s = time.monotonic() - began
        log.info("%s: taken warm in %.2f s, waited as %s", record.vm_id, took_s, it.vm_id)
        return mine, machine

    async def keep(self, template: Template | None) -> None:
        """End those that are of no use (any more): of another template, or ended by themselves."""
        for it in list(self._waiting):
            if it.end.done() or template is None or not it.template.is_same(template):
                self._begin_to_end(it)
        await self._all_ended()

    async def give_way(self) -> bool:
        """End all that wait for nobody yet, the one that is being made too: their memory is needed.
        Whether there were any."""
        for it in list(self._waiting):
            self._begin_to_end(it)
        making = self._making
        if making is not None:
            making.cancel()
            await asyncio.wait({making})
        return await self._all_ended() or making is not None

    async def end_reserved(self, vm_id: str) -> bool:
        """End the one that was kept for a machine. Whether there was one."""
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
        """Wait for those that are being ended, by whomever. Whether there were any."""
        ending = set(self._ending)
        if ending:
            await asyncio.wait(ending)
        return bool(ending)

    async def _made(
        self, template: Template, prepared: PreparedMachine, limit_s: float
    ) -> _StandbyClone:
        """Its page is painted; it stands still, with a program that waits to be told its name."""
        priority = Priority()
        async with asyncio.timeout(limit_s):
            machine = await clone(self._host, template, prepared, priority)
            self._registry.running[prepared.record.vm_id] = machine
            await guest_scripts.wait_first_paint(machine.channel)
            renaming = await guest_scripts.renaming(machine.channel)
            machine.channel.suspend_keepalive()
            await machine.vmm.pause()
        end = asyncio.create_task(machine.vmm.wait())
        return _StandbyClone(template, prepared, machine, priority, renaming, end)

    async def _renamed(
        self, it: _StandbyClone, record: MachineRecord
    ) -> tuple[MachineRecord, RunningMachine]:
        """It has the name of the record's machine, and is told so; it stands still."""
        was = it.prepared.record
        async with self._registry.lock_machine(it.vm_id):
            if it.vm_id not in self._registry.records or was.place is None:
                raise MachineBusy(f"{it.vm_id}, which waited, was destroyed")
            mine = was.updated(
                vm_id=record.vm_id, labels=record.labels, created_at=record.created_at
            )
            await run_in_thread_shielded(it.prepared.folder.become, mine)
            folder = self._host.folder(mine.vm_id)
            machine = RunningMachine(folder, it.machine.vmm, it.machine.channel)
            self._registry.remove(it.vm_id)
            self._registry.records[mine.vm_id] = mine
            self._registry.running[mine.vm_id] = machine
            machine.vmm.relocate(await spec_of(self._host, mine))
            await self._host.network.rename(it.vm_id, mine.vm_id)
            await self._host.provisioner.write_config(folder, mine, was.place, _READY_NONCE)
        return mine, machine

    async def _told(self, it: _StandbyClone, machine: RunningMachine) -> None:
        """The guest goes on as that machine. Raises: GuestMisbehaved, ChannelLost, VmmFailed."""
        drive = await asyncio.to_thread(machine.folder.config_drive.read_bytes)
        await asyncio.to_thread(it.priority.go_along)
        await machine.vmm.resume()
        machine.channel.resume_keepalive()
        await it.renaming.tell(drive)
        await it.renaming.ended()
        await it.renaming.close()

    async def _end(self, it: _StandbyClone) -> None:
        """Its VMM, and what is left under the name that it had when it waited."""
        with suppress(Exception):  # it has ended already, or will be found by a sweep
            await it.machine.kill()
        for vm_id, machine in list(self._registry.running.items()):
            if machine.vmm is it.machine.vmm:
                del self._registry.running[vm_id]
        await internal_machines.unmade(self._host, self._registry, it.vm_id)
