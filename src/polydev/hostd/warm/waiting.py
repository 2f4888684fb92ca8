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

from polydev.errors import MachineBusy
from polydev.hostd.machine import PreparedMachine, RunningMachine, spec_of
from polydev.hostd.record import MachineRecord
from polydev.hostd.roster import Roster
from polydev.hostd.site import Site
from polydev.hostd.uncut import to_its_end
from polydev.hostd.vmm.vmm import ExitReport
from polydev.hostd.warm import guest, nobodys, priority
from polydev.hostd.warm.cloning import clone
from polydev.hostd.warm.templates import Shape, Template

log = logging.getLogger("polydev.hostd")

WAITS = "warm-waiting"
_READY_NONCE = ""
"""It has been ready long ago: nobody listens for it."""


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    template: Template
    prepared: PreparedMachine
    machine: RunningMachine
    renaming: guest.Script
    end: asyncio.Task[ExitReport]
    """Of its VMM, should that end by itself."""

    @property
    def vm_id(self) -> str:
        return self.prepared.record.vm_id


class WaitingClones:
    """Of one host. What one is asked for it does or undoes whole, wherever it is cut."""

    def __init__(self, site: Site, roster: Roster) -> None:
        self._site = site
        self._roster = roster
        self._waiting: list[_Waiting] = []

    @property
    def count(self) -> int:
        return len(self._waiting)

    def one_of(self, shape: Shape) -> str | None:
        """The machine that whoever asks for that shape gets; None if none waits for that."""
        fitting = (it.vm_id for it in self._waiting if it.template.described.shape == shape)
        return next(fitting, None)

    async def make(self, template: Template, limit_s: float) -> None:
        """Have one more wait. Raises: TimeoutError, NoCapacity, and as `clone`; nothing is left."""
        began, shape = time.monotonic(), template.described.shape
        prepared = await nobodys.made(self._site, self._roster, shape, WAITS, fresh=False)
        vm_id = prepared.record.vm_id
        running = self._roster.memory_mib()
        try:
            with self._site.admission.admitted(vm_id, shape.memory_mib, running):
                machine, renaming = await self._made(template, prepared, limit_s)
        except BaseException:
            await nobodys.unmade(self._site, self._roster, vm_id)
            raise
        end = asyncio.create_task(machine.vmm.wait())
        self._waiting.append(_Waiting(template, prepared, machine, renaming, end))
        log.info("%s waits for a login, after %.2f s", vm_id, time.monotonic() - began)

    async def take(
        self, record: MachineRecord, template: Template
    ) -> tuple[MachineRecord, RunningMachine] | None:
        """One as the machine of this record, which is kept but has nothing yet; None if none waits.

        The caller sets the limit. When it raises, whatever it is, that clone is gone, and only the
        record's folder is to be cleared.
        """
        it = next((it for it in self._waiting if it.template.is_same(template)), None)
        if it is None:
            return None
        self._waiting.remove(it)
        it.end.cancel()
        began = time.monotonic()
        try:
            mine, machine = await to_its_end(self._renamed(it, record))
            await self._told(it, machine)
        except BaseException:
            await to_its_end(self._end(it))
            raise
        log.info("%s: was %s, in %.2f s", record.vm_id, it.vm_id, time.monotonic() - began)
        return mine, machine

    async def keep(self, template: Template | None) -> None:
        """End those that are of no use (any more): of another template, or ended by themselves."""
        for it in list(self._waiting):
            if it.end.done() or template is None or not it.template.is_same(template):
                await self._discard(it)

    async def give_way(self, but: str | None = None) -> bool:
        """End all that wait, except one: their memory is needed. Whether there were any."""
        leaving = [it for it in self._waiting if it.vm_id != but]
        for it in leaving:
            await self._discard(it)
        return bool(leaving)

    async def _made(
        self, template: Template, prepared: PreparedMachine, limit_s: float
    ) -> tuple[RunningMachine, guest.Script]:
        """Its page is painted; it stands still, with a program that waits to be told its name."""
        async with asyncio.timeout(limit_s):
            machine = await clone(self._site, template, prepared, gives_way=True)
            self._roster.running[prepared.record.vm_id] = machine
            await guest.painted(machine.channel)
            renaming = await guest.renaming(machine.channel)
            machine.channel.rest()
            await machine.vmm.stand_still()
        return machine, renaming

    async def _renamed(
        self, it: _Waiting, record: MachineRecord
    ) -> tuple[MachineRecord, RunningMachine]:
        """It has the name of the record's machine, and is told so; it stands still."""
        was = it.prepared.record
        async with self._roster.alone(it.vm_id):
            if it.vm_id not in self._roster.records or was.place is None:
                raise MachineBusy(f"{it.vm_id}, which waited, was destroyed")
            mine = was.now(vm_id=record.vm_id, labels=record.labels, created_at=record.created_at)
            await asyncio.to_thread(it.prepared.folder.become, mine)
            folder = self._site.folder(mine.vm_id)
            machine = RunningMachine(folder, it.machine.vmm, it.machine.channel)
            self._roster.forget(it.vm_id)
            self._roster.records[mine.vm_id] = mine
            self._roster.running[mine.vm_id] = machine
            machine.vmm.moved(await spec_of(self._site, mine))
            await self._site.network.rename(it.vm_id, mine.vm_id)
            await self._site.furnishing.write_config(folder, mine, was.place, _READY_NONCE)
        return mine, machine

    async def _told(self, it: _Waiting, machine: RunningMachine) -> None:
        """The guest goes on as that machine. Raises: GuestMisbehaved, ChannelLost, VmmFailed."""
        drive = await asyncio.to_thread(machine.folder.config_drive.read_bytes)
        await asyncio.to_thread(priority.go_along, machine.vmm.pid)
        await machine.vmm.go_on()
        machine.channel.wake()
        await it.renaming.tell(drive)
        await it.renaming.ended()
        await it.renaming.close()

    async def _discard(self, it: _Waiting) -> None:
        if it in self._waiting:  # somebody may have taken it meanwhile
            self._waiting.remove(it)
            it.end.cancel()
            await to_its_end(self._end(it))

    async def _end(self, it: _Waiting) -> None:
        """Its VMM, and what is left under the name that it had when it waited."""
        with suppress(Exception):  # it has ended already, or will be found by a sweep
            await it.machine.kill()
        for vm_id, machine in list(self._roster.running.items()):
            if machine.vmm is it.machine.vmm:
                del self._roster.running[vm_id]
        await nobodys.unmade(self._site, self._roster, it.vm_id)
