"""Sleep and wake: a machine's memory to its host's disk, and back into a VMM.

`machines.py` calls it, alone at the machine; `recovery.py` ends what was cut, by the same rules:

- Memory is used once. Its file is gone before the guest goes on, since a disk that has gone on
  without it would be damaged by it.
- Until the file is whole and in its place the VMM is kept, and goes on if anything fails; from then
  on the machine sleeps, whatever comes.
- Memory that cannot be used is thrown away, and the disk is booted: what was lost is said.

docs/machines.md, "Hibernation", tells what each cut leads to.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from polydev.hostagent import snapshots
from polydev.hostagent.machines.context import HostContext
from polydev.hostagent.machines.guest_resume import awaken, flush
from polydev.hostagent.machines.machine import RunningMachine, prepare_again, spec_of
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
"""What says that a machine's memory will not come back, however often it is tried."""


class Hibernation:
    """Of one host's machines."""

    def __init__(self, host: HostContext, registry: MachineRegistry, boot: Boot) -> None:
        """`boot` starts a machine at rest from its disk."""
        self._host = host
        self._registry = registry
        self._boot = boot

    # To sleep --------------------------------------------------------------------------------

    async def hibernate(self, record: MachineRecord) -> None:
        """Raises: VmmFailed, DiskFull, MachineBusy; the machine goes on then."""
        machine = self._registry.running.get(record.vm_id)
        if machine is None or record.state is not MachineState.RUNNING:
            raise MachineBusy(f"Machine {record.vm_id} is {record.state}", hint="Start it first")
        began = time.monotonic()
        try:
            await self._registry.save(record.updated(state=MachineState.HIBERNATING))
            size = await self._save(record, machine)
        except BaseException as error:
            await run_shielded(self._stay_awake(record, machine, error))
            raise
        await run_shielded(self._let_sleep(record, machine, size))
        log.info("%s: asleep in %.2f s, %d bytes", record.vm_id, time.monotonic() - began, size)

    async def _save(self, record: MachineRecord, machine: RunningMachine) -> int:
        """Bring the memory's file in its place; the guest stands still then."""
        path = self._host.folder(record.vm_id).memory
        fingerprint = await self._host.driver.fingerprint(await spec_of(self._host, record))
        key = await run_in_thread_shielded(self._host.memory_keys.load_or_create)
        await flush(machine)
        labels = Labels(self._host.driver.name, fingerprint)
        async with snapshots.create_snapshot(path, labels, key) as sink:
            await machine.vmm.save(sink)
        return path.stat().st_size

    async def _let_sleep(self, record: MachineRecord, machine: RunningMachine, size: int) -> None:
        self._registry.unwatch(record.vm_id)
        await machine.kill()
        self._registry.running.pop(record.vm_id, None)
        await self._registry.save(
            record.updated(state=MachineState.HIBERNATED, error=None, memory_bytes=size)
        )

    async def _stay_awake(
        self, record: MachineRecord, machine: RunningMachine, error: BaseException
    ) -> None:
        """The guest goes on as if nothing had been; that its VMM has ended is noticed elsewhere."""
        path = self._host.folder(record.vm_id).memory
        try:
            await discard_memory(self._host, record.vm_id)
        except OSError as another:
            log.error("%s cannot be removed: %s", path, another.strerror)
            if path.exists():  # beside it the guest must not go on
                await self._let_sleep(record, machine, path.stat().st_size)
                return
        if await _goes_on(machine) and isinstance(error, Exception):
            await awaken(machine)  # not when we are cut: somebody waits for us to end
        await self._keep_if_possible(record)

    async def drop_memory(self, record: MachineRecord) -> None:
        """Throw a sleeping machine's memory away: it is at rest then, with its disk."""
        await self._registry.save(record.updated(state=MachineState.STOPPED, memory_bytes=0))
        await discard_memory(self._host, record.vm_id)

    # Awake again -----------------------------------------------------------------------------

    async def resume(self, record: MachineRecord, ready_timeout_s: float) -> None:
        """Wake a machine that sleeps, or boot its disk if that cannot be.

        Raises: what booting raises; and what keeps the host from trying: it sleeps on then.
        """
        began = time.monotonic()
        try:
            await self._registry.save(record.updated(state=MachineState.RESUMING))
            machine = await self._restored(record)
            restored_at = time.monotonic()
            await run_shielded(self._use_memory(record, machine))
            await machine.wait_until_ready(min(ready_timeout_s, self._host.wake_limit_s))
            ready_at = time.monotonic()
            await awaken(machine)
        except _LOST as error:
            await run_shielded(self._give_up(record, error))
            return await self._boot(self._registry.record(record.vm_id), ready_timeout_s)
        except BaseException:
            await run_shielded(self._settle(record, began))
            raise
        await run_shielded(self._run_on(record, machine, began))
        log.info(
            "%s: restored in %.2f s, its channel answered in %.2f s, renewed in %.2f s",
            record.vm_id,
            restored_at - began,
            ready_at - restored_at,
            time.monotonic() - ready_at,
        )

    async def _restored(self, record: MachineRecord) -> RunningMachine:
        """The guest in a VMM, standing still; its memory's file is as it was."""
        try:
            return await self._restored_once(record)
        except VmmFailed as error:  # whatever ended the VMM: the memory is still whole
            log.warning("%s: trying again to wake it: %s", record.vm_id, error.message)
            return await self._restored_once(record)

    async def _restored_once(self, record: MachineRecord) -> RunningMachine:
        path = self._host.folder(record.vm_id).memory
        key = await asyncio.to_thread(self._host.memory_keys.load)
        async with snapshots.open_snapshot(path, key) as source:
            prepared = await prepare_again(self._host, record)
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

    async def _run_on(self, record: MachineRecord, machine: RunningMachine, began: float) -> None:
        self._registry.watch(record.vm_id, machine)
        wake = Wake(how="resumed", at=datetime.now(UTC), took_s=time.monotonic() - began)
        now = {"state": MachineState.RUNNING, "error": None, "memory_bytes": 0}
        await self._registry.save(record.updated(**now, wake=wake))

    async def _settle(self, record: MachineRecord, began: float) -> None:
        """After a cut: its memory is in the VMM, which runs on, or still whole in its file."""
        machine = self._registry.running.get(record.vm_id)
        if machine and not self._host.folder(record.vm_id).memory.exists():
            await _goes_on(machine)
            await self._run_on(record, machine, began)
        else:
            await self._end(record, machine)
            await self._keep_if_possible(record)

    async def _give_up(self, record: MachineRecord, error: PolydevError) -> None:
        log.warning("%s is booted without its memory: %s", record.vm_id, error.message)
        await self._end(record, self._registry.running.get(record.vm_id))
        await self._registry.save(
            record.updated(state=MachineState.STOPPED, memory_bytes=0, memory_lost=error.message)
        )
        await discard_memory(self._host, record.vm_id)

    async def _end(self, record: MachineRecord, machine: RunningMachine | None) -> None:
        if machine:
            await machine.kill()
            self._registry.running.pop(record.vm_id, None)

    async def _keep_if_possible(self, record: MachineRecord) -> None:
        """On the way out of a failure, which is what is to be told. Recovery needs no record."""
        try:
            await self._registry.save(record)
        except OSError as error:
            log.error("the record of %s was not kept: %s", record.vm_id, error.strerror)


async def discard_memory(host: HostContext, vm_id: str) -> None:
    """Remove the saved memory of a machine, whole or not. Raises: OSError."""
    await run_in_thread_shielded(snapshots.discard, host.folder(vm_id).memory)


async def _goes_on(machine: RunningMachine) -> bool:
    """Let a guest go on; one that cannot is ended, which whoever watches it notices and says."""
    try:
        await machine.vmm.resume()
    except PolydevError as error:
        log.error("%s does not go on, and is ended: %s", machine.folder.vm_id, error.message)
        await machine.kill()
        return False
    return True
