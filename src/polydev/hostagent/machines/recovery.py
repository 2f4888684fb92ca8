"""Recover the machines of an earlier agent at the start of this one.

A running machine is adopted undisturbed. A half created or half destroyed one is removed. An
interrupted hibernation or resume is completed or undone. What belongs to no machine is swept.
"""

from __future__ import annotations

import asyncio
import logging
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime

from polydev.hostagent import snapshots
from polydev.hostagent.machines.context import HostContext
from polydev.hostagent.machines.guest_resume import resume_guest
from polydev.hostagent.machines.machine import RunningMachine, adopt, erase
from polydev.hostagent.machines.record import MachineFolder, MachineRecord, end_changes
from polydev.hostagent.vmm.contract import ExitReport
from polydev.hostagent.vmm.leftovers import end_leftovers
from polydev.shared.domain import MachineState
from polydev.shared.errors import PolydevError
from polydev.shared.host_protocol import VM_ID_PATTERN, Wake

log = logging.getLogger("polydev.hostagent")


@dataclass(slots=True)
class Recovered:
    """The machines that an earlier agent left."""

    records: list[MachineRecord] = field(default_factory=list)
    running: dict[str, RunningMachine] = field(default_factory=dict)


async def recover(host: HostContext) -> Recovered:
    """Adopt, remove and sweep. Raises NetworkFailed."""
    found = Recovered()
    for vm_id in await asyncio.to_thread(_folders, host):
        await _recover_one(host, vm_id, found)
    keep = [host.folder(record.vm_id).path for record in found.records]
    await end_leftovers(host.driver.find_orphans(keep))
    await host.network.sweep([record.vm_id for record in found.records])
    return found


async def _recover_one(host: HostContext, vm_id: str, found: Recovered) -> None:
    record = await asyncio.to_thread(host.folder(vm_id).read)
    if record is not None and record.vm_id != vm_id and record.state.is_incomplete:
        log.warning("removing clone %s, whose renaming to %s is incomplete", vm_id, record.vm_id)
        await erase(host, vm_id, None)  # its VMM, if there is one, is a leftover
        return
    if record is None or record.vm_id != vm_id:
        await asyncio.to_thread(_discard_unknown, host.folder(vm_id))
        return
    machine = await adopt(host, record)
    if record.state.is_incomplete:
        log.warning("removing %s, whose state is %s since the last host agent", vm_id, record.state)
        await erase(host, vm_id, machine)
        return
    if record.state.may_have_saved_memory:
        record, machine = await _finish_hibernation(host, record, machine)
    elif record.state in (MachineState.RUNNING, MachineState.STOPPING):
        record = await _adopted_record(record, machine)
    elif machine:  # its start was interrupted: the caller repeats it
        await machine.kill()
        machine = None
    if record.state is not MachineState.HIBERNATED:
        await asyncio.to_thread(snapshots.discard, host.folder(vm_id).memory)
    await asyncio.to_thread(host.folder(vm_id).write, record)
    found.records.append(record)
    if machine:
        found.running[vm_id] = machine


async def _adopted_record(record: MachineRecord, machine: RunningMachine | None) -> MachineRecord:
    """Return the record of a running or stopping machine, adopted or not.

    A paused guest is resumed: this agent has no reason to pause it.
    """
    if machine:
        try:
            await machine.vmm.resume()
        except PolydevError as error:
            log.warning("cannot resume %s: %s", record.vm_id, error.message)
        return record.updated(state=MachineState.RUNNING, error=None)
    if record.state is MachineState.STOPPING:
        return record.updated(state=MachineState.STOPPED)
    return record.updated(**end_changes(record.vm_id, ExitReport(None, "while no host agent ran")))


async def _finish_hibernation(
    host: HostContext, record: MachineRecord, machine: RunningMachine | None
) -> tuple[MachineRecord, RunningMachine | None]:
    """Complete or undo an interrupted hibernation or resume.

    While the memory file exists, the disk has not changed since: the machine is hibernated, and a
    paused VMM with the same memory must go. Without the file its memory is in the VMM, or lost.
    """
    memory = host.folder(record.vm_id).memory
    if await asyncio.to_thread(memory.exists):
        if machine:
            await machine.kill()
        size = (await asyncio.to_thread(memory.stat)).st_size
        return record.updated(state=MachineState.HIBERNATED, memory_bytes=size), None
    record = record.updated(memory_bytes=0)
    if machine and record.state is not MachineState.HIBERNATED:
        try:
            await machine.vmm.resume()
            await resume_guest(machine)
            if record.state is MachineState.RESUMING:
                record = record.updated(wake=Wake(how="resumed", at=datetime.now(UTC), took_s=0))
            return record.updated(state=MachineState.RUNNING, error=None), machine
        except PolydevError as error:
            log.warning("cannot resume %s, which is paused: %s", record.vm_id, error.message)
    if machine:
        await machine.kill()
    gone = record.updated(**end_changes(record.vm_id, ExitReport(None, "while no host agent ran")))
    return gone.updated(memory_lost="Its saved memory is gone"), None


def _discard_unknown(folder: MachineFolder) -> None:
    """Remove a folder without a record; leave one whose record is unreadable.

    Records are written atomically. An unreadable one comes from another version or a broken disk,
    and the user's files must stay.
    """
    if folder.record.exists():
        log.error("cannot read the record %s; its machine is ignored", folder.record)
    else:
        log.warning("removing %s, a folder without a record", folder.path)
        folder.remove()


def _folders(host: HostContext) -> list[str]:
    host.machines_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
    names = (path.name for path in host.machines_dir.iterdir() if path.is_dir())
    return sorted(name for name in names if re.match(VM_ID_PATTERN, name))
