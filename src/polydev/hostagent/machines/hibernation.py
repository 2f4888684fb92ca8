"""Hibernate a machine to its host's disk, and resume it.

The caller holds the machine's lock. `recovery.py` completes an interruption by the same rules:

- Memory is used once. Its file is removed before the guest runs: used twice, it would damage a disk
  that has changed since.
- Until the file is complete and in its place, the VMM stays paused, and continues if a step fails.
  After that the machine is hibernated in any case.
- Unusable memory is discarded, and the machine boots from its disk. The record has the reason.

docs/machines.md, "Hibernation", lists the outcome of each interruption.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from polydev.hostagent import snapshots
from polydev.hostagent.machines.context import HostContext
from polydev.hostagent.machines.guest_resume import flush, resume_guest
from polydev.hostagent.machines.machine import RunningMachine, last_spec, prepare_restore
from polydev.hostagent.machines.record import MachineRecord
from polydev.hostagent.machines.registry import MachineRegistry
from polydev.hostagent.snapshots import Labels
from polydev.hostagent.system.cancellation import run_in_thread_shielded, run_shielded
from polydev.shared.domain import MachineState
from polydev.shared.errors import (
    GuestMisbehaved,
    MachineBusy,
    MachineNotReady,
    MissingImage,
    PolydevError,
    SnapshotUnusable,
    VmmFailed,
)
from polydev.shared.host_protocol import Wake

log = logging.getLogger("polydev.hostagent")

Boot = Callable[[MachineRecord, float], Awaitable[None]]

_LOST = (SnapshotUnusable, VmmFailed, MissingImage, MachineNotReady, GuestMisbehaved)
"""Errors after which another attempt to restore the memory would fail too."""


class Hibernation:
    """Hibernates and resumes the machines of one host."""

    def __init__(self, host: HostContext, registry: MachineRegistry, boot: Boot) -> None:
        """`boot` starts a machine at rest from its disk."""
        self._host = host
        self._registry = registry
        self._boot = boot

    async def hibernate(self, record: MachineRecord) -> None:
        """Save a machine's memory and end its VMM.

        Raises: VmmFailed, DiskFull, MachineBusy; the machine runs on then.
        """
        machine = self._registry.running.get(record.vm_id)
        if machine is None or record.state is not MachineState.RUNNING:
            raise MachineBusy(f"Machine {record.vm_id} is {record.state}", hint="Start it first")
        began = time.monotonic()
        try:
            await self._registry.save(record.updated(state=MachineState.HIBERNATING))
            size = await self._save(record, machine)
        except BaseException as error:
            await run_shielded(self._abort(record, machine, error))
            raise
        await run_shielded(self._complete(record, machine, size))
        log.info("%s: hibernated in %.2f s, %d bytes", record.vm_id, time.monotonic() - began, size)

    async def _save(self, record: MachineRecord, machine: RunningMachine) -> int:
        """Write the memory file, and return its size. The guest is paused then."""
        path = self._host.folder(record.vm_id).memory
        fingerprint = await self._host.driver.fingerprint(await last_spec(self._host, record))
        key = await run_in_thread_shielded(self._host.memory_keys.load_or_create)
        await flush(machine)
        labels = Labels(self._host.driver.name, fingerprint)
        async with snapshots.create_snapshot(path, labels, key) as sink:
            await machine.vmm.save(sink)
        return path.stat().st_size

    async def _complete(self, record: MachineRecord, machine: RunningMachine, size: int) -> None:
        self._registry.unwatch(record.vm_id)
        await machine.kill()
        self._registry.running.pop(record.vm_id, None)
        await self._registry.save(
            record.updated(state=MachineState.HIBERNATED, error=None, memory_bytes=size)
        )

    async def _abort(
        self, record: MachineRecord, machine: RunningMachine, error: BaseException
    ) -> None:
        """Resume the guest; the registry notices if its VMM has ended."""
        path = self._host.folder(record.vm_id).memory
        try:
            await discard_memory(self._host, record.vm_id)
        except OSError as another:
            log.error("cannot remove %s: %s", path, another.strerror)
            if path.exists():  # the guest must not run while it exists
                await self._complete(record, machine, path.stat().st_size)
                return
        if await _resume_or_kill(machine) and isinstance(error, Exception):
            await resume_guest(machine)  # not on cancellation: the caller waits for the end
        await self._try_save(record)

    async def drop_memory(self, record: MachineRecord) -> None:
        """Discard the memory of a hibernated machine: it is stopped then, with its disk."""
        await self._registry.save(record.updated(state=MachineState.STOPPED, memory_bytes=0))
        await discard_memory(self._host, record.vm_id)

    async def resume(self, record: MachineRecord, ready_timeout_s: float) -> None:
        """Resume a hibernated machine; if its memory is unusable, boot its disk.

        Raises: what booting raises. If the host cannot try, the machine stays hibernated.
        """
        began = time.monotonic()
        try:
            await self._registry.save(record.updated(state=MachineState.RESUMING))
            machine = await self._restore(record)
            restored_at = time.monotonic()
            await run_shielded(self._use_memory(record, machine))
            await machine.wait_until_ready(min(ready_timeout_s, self._host.wake_limit_s))
            ready_at = time.monotonic()
            await resume_guest(machine)
        except _LOST as error:
            await run_shielded(self._discard_unusable(record, error))
            return await self._boot(self._registry.record(record.vm_id), ready_timeout_s)
        except BaseException:
            await run_shielded(self._revert_or_complete(record, began))
            raise
        await run_shielded(self._record_resume(record, machine, began))
        log.info(
            "%s: restored in %.2f s, its channel answered in %.2f s, renewed in %.2f s",
            record.vm_id,
            restored_at - began,
            ready_at - restored_at,
            time.monotonic() - ready_at,
        )

    async def _restore(self, record: MachineRecord) -> RunningMachine:
        """Restore the guest in a VMM, paused; the memory file stays."""
        try:
            return await self._restore_once(record)
        except VmmFailed as error:  # the memory file is unharmed
            log.warning("%s: retrying to resume it: %s", record.vm_id, error.message)
            return await self._restore_once(record)

    async def _restore_once(self, record: MachineRecord) -> RunningMachine:
        path = self._host.folder(record.vm_id).memory
        key = await asyncio.to_thread(self._host.memory_keys.load)
        async with snapshots.open_snapshot(path, key) as source:
            prepared = await prepare_restore(self._host, record)
            here = Labels(
                self._host.driver.name, await self._host.driver.fingerprint(prepared.spec)
            )
            here.require(source.header)
            machine = await prepared.restore(self._host, source)
            self._registry.running[record.vm_id] = machine
        return machine

    async def _use_memory(self, record: MachineRecord, machine: RunningMachine) -> None:
        await discard_memory(self._host, record.vm_id)
        await machine.vmm.resume()

    async def _record_resume(
        self, record: MachineRecord, machine: RunningMachine, began: float
    ) -> None:
        self._registry.watch(record.vm_id, machine)
        wake = Wake(how="resumed", at=datetime.now(UTC), took_s=time.monotonic() - began)
        now = {"state": MachineState.RUNNING, "error": None, "memory_bytes": 0}
        await self._registry.save(record.updated(**now, wake=wake))

    async def _revert_or_complete(self, record: MachineRecord, began: float) -> None:
        """Run on with the memory in the VMM, or keep the memory file."""
        machine = self._registry.running.get(record.vm_id)
        if machine and not self._host.folder(record.vm_id).memory.exists():
            await _resume_or_kill(machine)
            await self._record_resume(record, machine, began)
        else:
            await self._end(record, machine)
            await self._try_save(record)

    async def _discard_unusable(self, record: MachineRecord, error: PolydevError) -> None:
        log.warning("booting %s without its saved memory: %s", record.vm_id, error.message)
        await self._end(record, self._registry.running.get(record.vm_id))
        await self._registry.save(
            record.updated(state=MachineState.STOPPED, memory_bytes=0, memory_lost=error.message)
        )
        await discard_memory(self._host, record.vm_id)

    async def _end(self, record: MachineRecord, machine: RunningMachine | None) -> None:
        if machine:
            await machine.kill()
            self._registry.running.pop(record.vm_id, None)

    async def _try_save(self, record: MachineRecord) -> None:
        """Save the record after a failure, which matters more. Recovery can do without."""
        try:
            await self._registry.save(record)
        except OSError as error:
            log.error("cannot save the record of %s: %s", record.vm_id, error.strerror)


async def discard_memory(host: HostContext, vm_id: str) -> None:
    """Remove the saved memory of a machine, complete or partial. Raises: OSError."""
    await run_in_thread_shielded(snapshots.discard, host.folder(vm_id).memory)


async def _resume_or_kill(machine: RunningMachine) -> bool:
    """Resume a guest, or kill it: the registry then records its end."""
    try:
        await machine.vmm.resume()
    except PolydevError as error:
        log.error("killing %s, which cannot be resumed: %s", machine.folder.vm_id, error.message)
        await machine.kill()
        return False
    return True
