"""The machines of this host: which there are, and what may be done to each.

`operations.py` has operations performed here, `server.py` reads and opens streams. One operation at
a time per machine, different machines in parallel; only destroying does not wait: it cuts a
creation, start or stop short. Every operation may run twice and be cut anywhere.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from polydev.domain import MachineState
from polydev.errors import MachineBusy, NoSuchMachine
from polydev.hostapi import (
    CreateMachine,
    ExecRequest,
    Inventory,
    MachineView,
    RemoveFiles,
    Swept,
    WriteFiles,
)
from polydev.hostd import inventory, recovery, sweeping
from polydev.hostd.channel.guest_files import GuestFiles
from polydev.hostd.machine import RunningMachine, erase, has_logs, keep_logs, naming_logs, prepare
from polydev.hostd.problems import as_polydev_error, problem_of
from polydev.hostd.record import MachineRecord, view_of
from polydev.hostd.site import UID_BASE, Channel, Site
from polydev.hostd.streams import GuestConnection, GuestProgram

log = logging.getLogger("polydev.hostd")
_LET_GO_LIMIT_S = 5.0
_AT_REST = (MachineState.STOPPED, MachineState.FAILED)


class Machines:
    """The machines of one host."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._records: dict[str, MachineRecord] = {}
        self._running: dict[str, RunningMachine] = {}
        self._watchers: dict[str, asyncio.Task[None]] = {}
        self._cuttable: dict[str, asyncio.Task[MachineView]] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def recover(self) -> None:
        """Take over what an earlier agent left: adopt what runs, remove what is half made."""
        found = await recovery.recover(self._site)
        self._records = {record.vm_id: record for record in found.records}
        for vm_id, machine in found.running.items():
            self._watch(vm_id, machine)

    async def close(self) -> None:
        """Let go of all machines; they run on."""
        for watcher in self._watchers.values():
            watcher.cancel()
        machines = list(self._running.values())
        self._running.clear()
        if machines:
            letting_go = [asyncio.create_task(machine.let_go()) for machine in machines]
            await asyncio.wait(letting_go, timeout=_LET_GO_LIMIT_S)

    # What is asked ---------------------------------------------------------------------------

    async def create(self, asked: CreateMachine) -> MachineView:
        """Make a machine and start it; what fails or is cancelled leaves nothing but kept logs.

        One that is there already is started if it is at rest: its VMM may have ended between its
        creation and the answer to whoever asked. When that fails the machine stays, as failed.
        """
        async with self._alone(asked.vm_id):
            known = self._records.get(asked.vm_id)
            if known is None:
                return await self._interruptible(asked.vm_id, self._create(asked))
            self._require_same(known, asked)
            if known.state in _AT_REST:
                start = self._start(known, asked.ready_timeout_s)
                return await self._interruptible(asked.vm_id, start)
            if known.state is not MachineState.RUNNING:
                raise MachineBusy(f"Machine {known.vm_id} exists already, and is {known.state}")
            return self.view(known.vm_id)

    async def destroy(self, vm_id: str) -> None:
        """End a machine and remove all that is its. Done also when it never was."""
        if work := self._cuttable.get(vm_id):
            work.cancel()
        async with self._alone(vm_id):
            if record := self._records.get(vm_id):
                await self._keep(record.now(state=MachineState.DESTROYING))
            await self._erase(vm_id)

    async def stop(self, vm_id: str) -> MachineView:
        """End the guest cleanly, or kill it after a grace time; disk and address stay."""
        async with self._alone(vm_id):
            record = self._record(vm_id)
            machine = self._running.get(vm_id)
            if machine is not None:
                return await self._interruptible(vm_id, self._stop(record, machine))
            if record.state is MachineState.STOPPING:  # an earlier stop was cut at its end
                await self._keep(record.now(state=MachineState.STOPPED))
            return self.view(vm_id)

    async def start(self, vm_id: str, ready_timeout_s: float) -> MachineView:
        """Start a machine that is at rest; when that fails it stays, as failed."""
        async with self._alone(vm_id):
            record = self._record(vm_id)
            if record.state is MachineState.RUNNING:
                return self.view(vm_id)
            return await self._interruptible(vm_id, self._start(record, ready_timeout_s))

    async def forget(self, vm_id: str) -> None:
        """Remove what is kept of a machine that is gone. Raises MachineBusy for one that is not."""
        async with self._alone(vm_id):
            if vm_id in self._records:
                raise MachineBusy(f"Machine {vm_id} is still there", hint="Destroy it first")
            await asyncio.to_thread(self._site.kept_logs.forget, vm_id)

    async def write_files(self, asked: WriteFiles) -> MachineView:
        """Put files into a machine: through its channel while it runs, else into its disk."""
        files = [file.guest_file() for file in asked.files]
        async with self._alone(asked.vm_id):
            if record := self._at_rest(asked.vm_id):
                await self._site.furnishing.write_offline(record, files)
            else:
                await self._channel(asked.vm_id).write_files(files)
            return self.view(asked.vm_id)

    async def remove_files(self, asked: RemoveFiles) -> MachineView:
        """Delete files of a machine; done also when they are not there."""
        async with self._alone(asked.vm_id):
            if record := self._at_rest(asked.vm_id):
                await self._site.furnishing.remove_offline(record, asked.paths)
            else:
                await self._channel(asked.vm_id).remove_files(asked.paths)
            return self.view(asked.vm_id)

    # What can be looked at -------------------------------------------------------------------

    def views(self) -> list[MachineView]:
        """All machines, oldest first."""
        records = sorted(self._records.values(), key=lambda record: record.created_at)
        return [self.view(record.vm_id) for record in records]

    def records(self) -> list[MachineRecord]:
        """What is wanted of each machine, and what it was given."""
        return list(self._records.values())

    def vmm_pids(self) -> dict[str, int]:
        """The VMM of each machine that runs."""
        return {vm_id: machine.vmm.pid for vm_id, machine in self._running.items()}

    def known(self) -> list[str]:
        """The ids of all machines."""
        return list(self._records)

    def view(self, vm_id: str) -> MachineView:
        """One machine. Raises NoSuchMachine."""
        machine = self._running.get(vm_id)
        pid = machine.vmm.pid if machine else None
        return view_of(self._record(vm_id), self._site.folder(vm_id), pid)

    def console_log(self, vm_id: str) -> Path:
        """Where a machine's console log is, also of one that failed and is gone."""
        if vm_id in self._records:
            return self._site.folder(vm_id).console_log
        return self._kept(vm_id, self._site.kept_logs.console_log(vm_id))

    def error_log(self, vm_id: str) -> Path:
        """Where a machine's error log is, also of one that failed and is gone."""
        if vm_id in self._records:
            return self._site.folder(vm_id).error_log
        return self._kept(vm_id, self._site.kept_logs.error_log(vm_id))

    async def inventory(self) -> Inventory:
        """What exists on this host, by looking."""
        return await inventory.look(self._site, list(self._records), dict(self._running))

    async def sweep(self) -> Swept:
        """Remove what belongs to no machine."""
        return await sweeping.sweep(self._site, self._records, self._alone)

    # Ways in ---------------------------------------------------------------------------------

    def require_running(self, vm_id: str) -> None:
        """Raises NoSuchMachine, or MachineBusy when it does not run."""
        self._channel(vm_id)

    async def exec(self, vm_id: str, request: ExecRequest) -> GuestProgram:
        """Start a program in a running machine."""
        return await self._channel(vm_id).exec(request)

    async def open_tcp(self, vm_id: str, port: int) -> GuestConnection:
        """Connect to a port on a running machine's 127.0.0.1."""
        return await self._channel(vm_id).open_tcp(port)

    def guest_files(self, vm_id: str) -> GuestFiles:
        """The files of a running machine, for people who look around in it."""
        return self._channel(vm_id).guest_files()

    async def read_file(self, vm_id: str, path: str, max_bytes: int) -> bytes:
        """A file of a machine, running or not. Raises NoSuchFile, GuestMisbehaved when larger."""
        if self._at_rest(vm_id):
            async with self._alone(vm_id):
                if record := self._at_rest(vm_id):
                    return await self._site.furnishing.read_offline(record, path, max_bytes)
        return await self._channel(vm_id).read_file(path, max_bytes)

    # How it is done --------------------------------------------------------------------------

    async def _create(self, asked: CreateMachine) -> MachineView:
        if await asyncio.to_thread(self._site.folder(asked.vm_id).path.exists):
            raise MachineBusy(
                f"There is a folder of {asked.vm_id} already, with a record that cannot be read",
                hint="Destroy it first",
            )
        record = self._new_record(asked)
        self._records[asked.vm_id] = record
        try:
            await self._keep(record)
            if asked.token:
                await asyncio.to_thread(
                    self._site.folder(asked.vm_id).write_token, asked.token.get_secret_value()
                )
            return await self._launch(record, asked.ready_timeout_s, fresh=True)
        except Exception as error:
            await self._undo(asked.vm_id, keeping_logs=has_logs(error))
            raise naming_logs(as_polydev_error(error), self._site, asked.vm_id) from error
        except BaseException:
            await self._undo(asked.vm_id, keeping_logs=False)
            raise

    async def _start(self, record: MachineRecord, ready_timeout_s: float) -> MachineView:
        try:
            return await self._launch(record, ready_timeout_s, fresh=False)
        except BaseException as error:
            if machine := self._running.get(record.vm_id):
                await machine.kill()
                self._running.pop(record.vm_id, None)
            if isinstance(error, Exception):
                record = record.now(state=MachineState.FAILED, error=problem_of(error))
            await self._keep(record)
            raise

    async def _stop(self, record: MachineRecord, machine: RunningMachine) -> MachineView:
        await self._keep(record.now(state=MachineState.STOPPING))
        self._unwatch(record.vm_id)
        await machine.end(self._site.stop_grace_s)
        self._running.pop(record.vm_id, None)
        await self._keep(record.now(state=MachineState.STOPPED, error=None))
        return self.view(record.vm_id)

    async def _launch(
        self, record: MachineRecord, ready_timeout_s: float, *, fresh: bool
    ) -> MachineView:
        began = time.monotonic()
        prepared = await prepare(self._site, record, fresh=fresh)
        self._records[record.vm_id] = prepared.record
        prepared_at = time.monotonic()
        machine = await prepared.launch(self._site)
        self._running[record.vm_id] = machine
        launched_at = time.monotonic()
        await machine.until_ready(ready_timeout_s)
        log.info(
            "%s: prepared in %.2f s, VMM up in %.2f s, guest ready in %.2f s",
            record.vm_id,
            prepared_at - began,
            launched_at - prepared_at,
            time.monotonic() - launched_at,
        )
        await self._keep(prepared.record.now(state=MachineState.RUNNING, error=None))
        self._watch(record.vm_id, machine)
        return self.view(record.vm_id)

    async def _undo(self, vm_id: str, *, keeping_logs: bool) -> None:
        try:
            if machine := self._running.get(vm_id):
                await machine.kill()
            if keeping_logs:
                await keep_logs(self._site, vm_id)
            await self._erase(vm_id)
        except Exception as error:  # What is left is taken by destroying, or by the next recovery.
            log.error("%s is not wholly undone: %s", vm_id, problem_of(error).message)

    async def _erase(self, vm_id: str) -> None:
        self._unwatch(vm_id)
        await erase(self._site, vm_id, self._running.get(vm_id))
        self._running.pop(vm_id, None)
        self._records.pop(vm_id, None)

    async def _interruptible(
        self, vm_id: str, work: Coroutine[Any, Any, MachineView]
    ) -> MachineView:
        """Do work that destroying the machine cuts short."""
        task = asyncio.create_task(work)
        self._cuttable[vm_id] = task
        try:
            return await task
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current and current.cancelling():
                raise
            raise MachineBusy(f"Machine {vm_id} was destroyed meanwhile") from None
        finally:
            del self._cuttable[vm_id]

    async def _keep(self, record: MachineRecord) -> None:
        self._records[record.vm_id] = record
        await asyncio.to_thread(self._site.folder(record.vm_id).write, record)

    def _watch(self, vm_id: str, machine: RunningMachine) -> None:
        self._running[vm_id] = machine
        self._watchers[vm_id] = asyncio.create_task(
            self._notice_end(vm_id, machine), name=f"watch {vm_id}"
        )

    def _unwatch(self, vm_id: str) -> None:
        if watcher := self._watchers.pop(vm_id, None):
            watcher.cancel()

    async def _notice_end(self, vm_id: str, machine: RunningMachine) -> None:
        """When a VMM ends by itself, or is ended from outside: say so in the machine's record."""
        report = await machine.vmm.wait()
        async with self._alone(vm_id):
            if self._running.get(vm_id) is not machine:
                return
            self._watchers.pop(vm_id, None)
            await machine.kill()
            del self._running[vm_id]
            record = self._record(vm_id).now(**recovery.ended(vm_id, report))
            log.warning("%s: %s", vm_id, record.error.message if record.error else "ended")
            await self._keep(record)

    def _new_record(self, asked: CreateMachine) -> MachineRecord:
        taken = {record.uid for record in self._records.values()}
        return MachineRecord(
            vm_id=asked.vm_id,
            machine_kind=asked.machine_kind,
            memory_mib=asked.memory_mib,
            vcpus=asked.vcpus,
            disk_mib=asked.disk_mib,
            labels=asked.labels,
            state=MachineState.CREATING,
            created_at=datetime.now(UTC),
            uid=next(uid for uid in itertools.count(UID_BASE) if uid not in taken),
        )

    def _require_same(self, known: MachineRecord, asked: CreateMachine) -> None:
        shape = ("machine_kind", "memory_mib", "vcpus", "disk_mib")
        if any(getattr(known, name) != getattr(asked, name) for name in shape):
            raise MachineBusy(f"Machine {known.vm_id} exists already, with another shape")

    def _record(self, vm_id: str) -> MachineRecord:
        record = self._records.get(vm_id)
        if record is None:
            raise NoSuchMachine(f"No machine {vm_id} on this host")
        return record

    def _channel(self, vm_id: str) -> Channel:
        record = self._record(vm_id)
        machine = self._running.get(vm_id)
        if machine is None or record.state is not MachineState.RUNNING:
            raise MachineBusy(f"Machine {vm_id} is {record.state}", hint="Start it first")
        return machine.channel

    def _at_rest(self, vm_id: str) -> MachineRecord | None:
        """The record of a machine that has a disk and no VMM."""
        record = self._record(vm_id)
        return record if record.state in _AT_REST else None

    def _kept(self, vm_id: str, path: Path) -> Path:
        if not path.exists():
            self._record(vm_id)
        return path

    @asynccontextmanager
    async def _alone(self, vm_id: str) -> AsyncIterator[None]:
        """One operation at a time on this machine."""
        lock = self._locks.setdefault(vm_id, asyncio.Lock())
        async with lock:
            yield
