"""Create, start, stop and destroy a machine, and undo what fails or is cancelled.

The caller holds the machine's lock. Each method is bounded, and may be cancelled at any point.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from datetime import UTC, datetime
from typing import Protocol

from polydev.hostagent.machines.context import HostContext
from polydev.hostagent.machines.hibernation import Hibernation, discard_memory
from polydev.hostagent.machines.machine import RunningMachine, erase, prepare
from polydev.hostagent.machines.record import MachineRecord
from polydev.hostagent.machines.registry import MachineRegistry
from polydev.hostagent.system.error_mapping import as_polydev_error, problem_of
from polydev.shared.domain import MachineState
from polydev.shared.errors import (
    MachineBusy,
    MachineNotReady,
    NoCapacity,
    PolydevError,
    VmmFailed,
)
from polydev.shared.host_protocol import CreateMachine, Wake

log = logging.getLogger("polydev.hostagent")


class CloneSource(Protocol):
    """A supplier of machines that are up already: the warm pool."""

    def reserve(self, request: CreateMachine) -> AbstractContextManager[None]:
        """Reserve a fitting standby clone for a machine until `take`."""

    def admit(self, machine: CreateMachine | MachineRecord) -> AbstractAsyncContextManager[None]:
        """Claim memory for a machine until it runs; evict clones if memory is short.

        Raises: NoCapacity.
        """

    async def take(
        self, record: MachineRecord, limit_s: float
    ) -> tuple[MachineRecord, RunningMachine] | None:
        """Turn a clone into the running machine of a saved record; None if it must boot.

        The registry then has the machine, or the record to boot.
        """

    async def evict_standby(self) -> bool:
        """Destroy all clones that are not reserved. Return True if there were any."""


class NoClones:
    """The clone source of a host on which every machine boots."""

    def __init__(self, host: HostContext, registry: MachineRegistry) -> None:
        self._host = host
        self._registry = registry

    @contextmanager
    def reserve(self, request: CreateMachine) -> Iterator[None]:
        yield

    @asynccontextmanager
    async def admit(self, machine: CreateMachine | MachineRecord) -> AsyncIterator[None]:
        running = self._registry.memory_mib()
        with self._host.admission.admitted(machine.vm_id, machine.memory_mib, running):
            yield

    async def take(self, record: MachineRecord, limit_s: float) -> None:
        return None

    async def evict_standby(self) -> bool:
        return False


class MachineLifecycle:
    """The state changes of one host's machines."""

    def __init__(self, host: HostContext, registry: MachineRegistry, clones: CloneSource) -> None:
        self._host = host
        self._registry = registry
        self._clones = clones
        self._hibernation = Hibernation(host, registry, self._boot)

    async def create(self, request: CreateMachine) -> None:
        """Create and start a machine, or start one that exists and is at rest.

        A failed creation leaves nothing but archived logs. If capacity is short, such as addresses,
        it evicts the standby clones and retries once.
        """
        if known := self._registry.records.get(request.vm_id):
            return await self._start_known(known, request)
        try:
            return await self._create(request)
        except NoCapacity:
            if not await self._clones.evict_standby():
                raise
        await self._create(request)

    async def _start_known(self, known: MachineRecord, request: CreateMachine) -> None:
        _require_same_size(known, request)
        if known.state.can_start:
            await self.start(known, request.ready_timeout_s)
        elif known.state is not MachineState.RUNNING:
            raise MachineBusy(f"Machine {known.vm_id} already exists and is {known.state}")

    async def _create(self, request: CreateMachine) -> None:
        with self._clones.reserve(request):
            async with self._clones.admit(request):
                await self._registry.require_unused(request.vm_id)
                record = self._registry.add(request)
                try:
                    await self._registry.save(record)
                    await self._registry.save_token(request)
                    until_s = time.monotonic() + request.ready_timeout_s
                    running = await self._clones.take(record, request.ready_timeout_s)
                    if running is None:
                        record = self._registry.records[request.vm_id]
                        left_s = until_s - time.monotonic()
                        running = await self._launch(record, left_s, fresh=True)
                    await self._registry.save_running(*running)
                except Exception as error:
                    reported = self._naming_logs(as_polydev_error(error), request.vm_id)
                    await self._undo(request.vm_id, archive_logs=_has_logs(error))
                    raise reported from error
                except BaseException:
                    await self._undo(request.vm_id, archive_logs=False)
                    raise

    async def start(self, record: MachineRecord, ready_timeout_s: float) -> None:
        """Boot a machine at rest, or resume a hibernated one.

        Raises: NoCapacity, which leaves it as it is; otherwise a failed boot leaves it as failed.
        """
        async with self._clones.admit(record):
            if record.state is MachineState.HIBERNATED:
                await self._hibernation.resume(record, ready_timeout_s)
            else:
                await self._boot(record, ready_timeout_s)

    async def _boot(self, record: MachineRecord, ready_timeout_s: float) -> None:
        began = time.monotonic()
        try:
            running, machine = await self._launch(record, ready_timeout_s, fresh=False)
            wake = Wake(
                how="booted",
                reason=record.memory_lost,
                at=datetime.now(UTC),
                took_s=time.monotonic() - began,
            )
            await self._registry.save_running(running.updated(wake=wake), machine)
        except BaseException as error:
            if started := self._registry.running.get(record.vm_id):
                await started.kill()
                self._registry.running.pop(record.vm_id, None)
            if isinstance(error, Exception):
                record = record.updated(state=MachineState.FAILED, error=problem_of(error))
            await self._registry.save(record)
            raise

    async def _launch(
        self, record: MachineRecord, ready_timeout_s: float, *, fresh: bool
    ) -> tuple[MachineRecord, RunningMachine]:
        """Start a VMM, and wait until its guest is ready."""
        began = time.monotonic()
        if not fresh:  # older memory must never be used with a changed disk
            await discard_memory(self._host, record.vm_id)
        prepared = await prepare(self._host, record, fresh=fresh)
        self._registry.records[record.vm_id] = prepared.record
        prepared_at = time.monotonic()
        machine = await prepared.launch(self._host)
        self._registry.running[record.vm_id] = machine
        launched_at = time.monotonic()
        await machine.wait_until_ready(ready_timeout_s)
        log.info(
            "%s: prepared in %.2f s, VMM up in %.2f s, guest ready in %.2f s",
            record.vm_id,
            prepared_at - began,
            launched_at - prepared_at,
            time.monotonic() - launched_at,
        )
        running = {"state": MachineState.RUNNING, "error": None, "memory_lost": ""}
        return prepared.record.updated(**running), machine

    async def hibernate(self, record: MachineRecord) -> None:
        """Write a machine's memory to disk and end its VMM; when that fails it runs on."""
        await self._hibernation.hibernate(record)

    async def stop(self, record: MachineRecord, machine: RunningMachine) -> None:
        """Shut the guest down, or kill it after a grace time; disk and address stay."""
        await self._registry.save(record.updated(state=MachineState.STOPPING))
        self._registry.unwatch(record.vm_id)
        await machine.shut_down(self._host.stop_grace_s)
        self._registry.running.pop(record.vm_id, None)
        await self._registry.save(record.updated(state=MachineState.STOPPED, error=None))

    async def drop_memory(self, record: MachineRecord) -> None:
        """Discard the memory of a hibernated machine: it is stopped then, with its disk."""
        await self._hibernation.drop_memory(record)

    async def destroy(self, vm_id: str) -> None:
        """End a machine and remove everything that belongs to it, complete or not."""
        self._registry.unwatch(vm_id)
        await erase(self._host, vm_id, self._registry.running.get(vm_id))
        self._registry.remove(vm_id)

    async def _undo(self, vm_id: str, *, archive_logs: bool) -> None:
        try:
            if machine := self._registry.running.get(vm_id):
                await machine.kill()
            if archive_logs:
                await self._archive_logs(vm_id)
            await self.destroy(vm_id)
        except Exception as error:  # `destroy`, or the next recovery, removes what is left
            log.error(
                "cannot revert the creation of %s completely: %s", vm_id, problem_of(error).message
            )

    async def _archive_logs(self, vm_id: str) -> None:
        folder, archive = self._host.folder(vm_id), self._host.log_archive
        try:
            await asyncio.to_thread(archive.add, vm_id, folder.console_log, folder.error_log)
        except OSError as error:
            log.warning("cannot archive the logs of %s: %s", vm_id, error.strerror)

    def _naming_logs(self, error: PolydevError, vm_id: str) -> PolydevError:
        """Add to an error the path of the machine's archived logs."""
        if not _has_logs(error):
            return error
        console = self._host.log_archive.console_log(vm_id)
        return type(error)(f"{error.message}; its console log is {console}", hint=error.hint)


def _has_logs(error: BaseException) -> bool:
    """Return True for an error that a machine's logs may explain."""
    return isinstance(error, (MachineNotReady, VmmFailed))


def _require_same_size(known: MachineRecord, request: CreateMachine) -> None:
    """Raises MachineBusy for a machine of another kind or size."""
    if (known.machine_kind, known.size) != (request.machine_kind, request.size):
        raise MachineBusy(f"Machine {known.vm_id} already exists, with another kind or size")
