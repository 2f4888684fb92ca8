"""The machines of this host: which there are, and what may be done to each.

`operations.py` has operations performed here, `server.py` reads and opens streams. One operation at
a time per machine, different machines in parallel; only destroying does not wait: it cuts a
creation, start or stop short. Every operation may run twice and be cut anywhere.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

from polydev.hostagent.channel.file_browser import GuestFiles
from polydev.hostagent.machines import inventory, orphan_cleanup, recovery
from polydev.hostagent.machines.context import Site
from polydev.hostagent.machines.hibernation import Hibernation
from polydev.hostagent.machines.lifecycle import (
    RunningMachine,
    erase,
    has_logs,
    keep_logs,
    naming_logs,
    prepare,
)
from polydev.hostagent.machines.record import MachineRecord
from polydev.hostagent.machines.registry import Roster
from polydev.hostagent.server.error_mapping import as_polydev_error, problem_of
from polydev.hostagent.server.websocket_streams import GuestConnection, GuestProgram
from polydev.hostagent.system.cancellation import in_thread
from polydev.hostagent.warm_pool import WarmBrowsers, WarmPolicy
from polydev.shared.domain import MachineState
from polydev.shared.errors import MachineBusy, NoCapacity
from polydev.shared.host_protocol import (
    CreateMachine,
    ExecRequest,
    Inventory,
    MachineView,
    RemoveFiles,
    Swept,
    Wake,
    WriteFiles,
)

log = logging.getLogger("polydev.hostagent")


class Machines:
    """The machines of one host."""

    def __init__(self, site: Site, warm: WarmPolicy | None = None) -> None:
        """`warm`: how browser machines are cloned of one that is up; None: they are not."""
        self._site = site
        self._roster = Roster(site)
        self.warm_browsers = WarmBrowsers(site, self._roster, warm)
        self._hibernation = Hibernation(site, self._roster, self._start)

    async def recover(self) -> None:
        """Take over what an earlier agent left: adopt what runs, remove what is half made."""
        self._roster.begin(await recovery.recover(self._site))

    async def close(self) -> None:
        """Let go of all machines; they run on."""
        await self._roster.let_go()

    # What is asked ---------------------------------------------------------------------------

    async def create(self, asked: CreateMachine) -> MachineView:
        """Make a machine and start it; what fails or is cancelled leaves nothing but kept logs.

        One that is there already is started if it is at rest: its VMM may have ended between its
        creation and the answer to whoever asked. When that fails the machine stays, as failed.
        """
        async with self._roster.alone(asked.vm_id):
            known = self._roster.records.get(asked.vm_id)
            if known is None:
                return await self._roster.cuttable(asked.vm_id, self._made(asked))
            self._require_same(known, asked)
            if known.state.can_start:
                return await self._up(known, asked.ready_timeout_s)
            if known.state is not MachineState.RUNNING:
                raise MachineBusy(f"Machine {known.vm_id} exists already, and is {known.state}")
            return self.view(known.vm_id)

    async def destroy(self, vm_id: str) -> None:
        """End a machine and remove all that is its. Done also when it never was."""
        self._roster.cut(vm_id)
        async with self._roster.alone(vm_id):
            if record := self._roster.records.get(vm_id):
                await self._roster.keep(record.now(state=MachineState.DESTROYING))
            await self._erase(vm_id)

    async def stop(self, vm_id: str) -> MachineView:
        """End the guest cleanly, or kill it after a grace time; disk and address stay.

        One that hibernates loses its memory.
        """
        async with self._roster.alone(vm_id):
            record = self._roster.record(vm_id)
            machine = self._roster.running.get(vm_id)
            _require_somebodys(record)
            if machine is not None:
                return await self._roster.cuttable(vm_id, self._stop(record, machine))
            if record.state is MachineState.HIBERNATED:
                await self._hibernation.forget(record)
            if record.state is MachineState.STOPPING:  # an earlier stop was cut at its end
                await self._roster.keep(record.now(state=MachineState.STOPPED))
            return self.view(vm_id)

    async def start(self, vm_id: str, ready_timeout_s: float) -> MachineView:
        """Start a machine that is at rest, or wake one that hibernates.

        When a start fails the machine stays, as failed.
        """
        async with self._roster.alone(vm_id):
            record = self._roster.record(vm_id)
            if record.state is MachineState.RUNNING:
                return self.view(vm_id)
            _require_somebodys(record)
            return await self._up(record, ready_timeout_s)

    async def hibernate(self, vm_id: str) -> MachineView:
        """Write a machine's memory to disk and end its VMM; when that fails it runs on."""
        async with self._roster.alone(vm_id):
            record = self._roster.record(vm_id)
            if record.state is MachineState.HIBERNATED:
                return self.view(vm_id)
            return await self._roster.cuttable(vm_id, self._hibernation.hibernate(record))

    async def forget(self, vm_id: str) -> None:
        """Remove what is kept of a machine that is gone. Raises MachineBusy for one that is not."""
        async with self._roster.alone(vm_id):
            if vm_id in self._roster.records:
                raise MachineBusy(f"Machine {vm_id} is still there", hint="Destroy it first")
            await asyncio.to_thread(self._site.kept_logs.forget, vm_id)

    async def write_files(self, asked: WriteFiles) -> MachineView:
        """Put files into a machine: through its channel while it runs, else into its disk."""
        files = [file.guest_file() for file in asked.files]
        async with self._roster.alone(asked.vm_id):
            if record := self._roster.at_rest(asked.vm_id):
                await self._site.furnishing.write_offline(record, files)
            else:
                await self._roster.channel(asked.vm_id).write_files(files)
            return self.view(asked.vm_id)

    async def remove_files(self, asked: RemoveFiles) -> MachineView:
        """Delete files of a machine; done also when they are not there."""
        async with self._roster.alone(asked.vm_id):
            if record := self._roster.at_rest(asked.vm_id):
                await self._site.furnishing.remove_offline(record, asked.paths)
            else:
                await self._roster.channel(asked.vm_id).remove_files(asked.paths)
            return self.view(asked.vm_id)

    # What can be looked at -------------------------------------------------------------------

    def views(self) -> list[MachineView]:
        """All machines, oldest first."""
        records = sorted(self._roster.records.values(), key=lambda record: record.created_at)
        return [self.view(record.vm_id) for record in records]

    def records(self) -> list[MachineRecord]:
        """What is wanted of each machine, and what it was given."""
        return list(self._roster.records.values())

    def vmm_pids(self) -> dict[str, int]:
        """The VMM of each machine that runs."""
        return {vm_id: machine.vmm.pid for vm_id, machine in self._roster.running.items()}

    def known(self) -> list[str]:
        """The ids of all machines."""
        return list(self._roster.records)

    def view(self, vm_id: str) -> MachineView:
        """One machine. Raises NoSuchMachine."""
        return self._roster.view(vm_id)

    def console_log(self, vm_id: str) -> Path:
        """Where a machine's console log is, also of one that failed and is gone."""
        if vm_id in self._roster.records:
            return self._site.folder(vm_id).console_log
        return self._kept(vm_id, self._site.kept_logs.console_log(vm_id))

    def error_log(self, vm_id: str) -> Path:
        """Where a machine's error log is, also of one that failed and is gone."""
        if vm_id in self._roster.records:
            return self._site.folder(vm_id).error_log
        return self._kept(vm_id, self._site.kept_logs.error_log(vm_id))

    async def inventory(self) -> Inventory:
        """What exists on this host, by looking."""
        return await inventory.look(
            self._site, list(self._roster.records), dict(self._roster.running)
        )

    async def sweep(self) -> Swept:
        """Remove what belongs to no machine."""
        return await orphan_cleanup.sweep(self._site, self._roster.records, self._roster.alone)

    # Ways in ---------------------------------------------------------------------------------

    def require_running(self, vm_id: str) -> None:
        """Raises NoSuchMachine, or MachineBusy when it does not run."""
        self._roster.channel(vm_id)

    async def exec(self, vm_id: str, request: ExecRequest) -> GuestProgram:
        """Start a program in a running machine."""
        return await self._roster.channel(vm_id).exec(request)

    async def open_tcp(self, vm_id: str, port: int) -> GuestConnection:
        """Connect to a port on a running machine's 127.0.0.1."""
        return await self._roster.channel(vm_id).open_tcp(port)

    def guest_files(self, vm_id: str) -> GuestFiles:
        """The files of a running machine, for people who look around in it."""
        return self._roster.channel(vm_id).guest_files()

    async def read_file(self, vm_id: str, path: str, max_bytes: int) -> bytes:
        """A file of a machine, running or not. Raises NoSuchFile, GuestMisbehaved when larger."""
        if self._roster.at_rest(vm_id):
            async with self._roster.alone(vm_id):
                if record := self._roster.at_rest(vm_id):
                    return await self._site.furnishing.read_offline(record, path, max_bytes)
        return await self._roster.channel(vm_id).read_file(path, max_bytes)

    # How it is done --------------------------------------------------------------------------

    async def _create(self, asked: CreateMachine) -> MachineView:
        if await asyncio.to_thread(self._site.folder(asked.vm_id).path.exists):
            raise MachineBusy(
                f"There is a folder of {asked.vm_id} already, with a record that cannot be read",
                hint="Destroy it first",
            )
        record = self._new_record(asked)
        self._roster.records[asked.vm_id] = record
        try:
            await self._roster.keep(record)
            if asked.token:
                folder, token = self._site.folder(asked.vm_id), asked.token.get_secret_value()
                await in_thread(folder.write_token, token)
            until_s = time.monotonic() + asked.ready_timeout_s
            made = await self.warm_browsers.take(record, asked.ready_timeout_s)
            if made is not None:
                return await self._cloned(*made)
            record = self._roster.record(asked.vm_id)
            return await self._launch(record, until_s - time.monotonic(), fresh=True)
        except Exception as error:
            await self._undo(asked.vm_id, keeping_logs=has_logs(error))
            raise naming_logs(as_polydev_error(error), self._site, asked.vm_id) from error
        except BaseException:
            await self._undo(asked.vm_id, keeping_logs=False)
            raise

    async def _made(self, asked: CreateMachine) -> MachineView:
        """Where what a clone that waits has is all that is missing, such as an address, it is given
        up for it."""
        try:
            return await self._made_once(asked)
        except NoCapacity:
            if not await self.warm_browsers.give_way():
                raise
        return await self._made_once(asked)

    async def _made_once(self, asked: CreateMachine) -> MachineView:
        with self.warm_browsers.reserved(asked):
            async with self._admitted(asked):
                return await self._create(asked)

    async def _up(self, record: MachineRecord, ready_timeout_s: float) -> MachineView:
        return await self._roster.cuttable(record.vm_id, self._woken(record, ready_timeout_s))

    async def _woken(self, record: MachineRecord, ready_timeout_s: float) -> MachineView:
        async with self._admitted(record):
            if record.state is MachineState.HIBERNATED:
                return await self._hibernation.resume(record, ready_timeout_s)
            return await self._start(record, ready_timeout_s)

    @asynccontextmanager
    async def _admitted(self, machine: CreateMachine | MachineRecord) -> AsyncIterator[None]:
        """Clones that wait give way, at last the one that was kept for this machine.

        Raises NoCapacity when this host has no memory for it; it stays as it is then.
        """
        with ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(self.warm_browsers.admitted(machine))
                    break
                except NoCapacity:
                    gave_way = await self.warm_browsers.give_way()
                    if not gave_way and not await self.warm_browsers.give_back(machine.vm_id):
                        raise
            yield

    async def _start(self, record: MachineRecord, ready_timeout_s: float) -> MachineView:
        try:
            return await self._launch(record, ready_timeout_s, fresh=False)
        except BaseException as error:
            if machine := self._roster.running.get(record.vm_id):
                await machine.kill()
                self._roster.running.pop(record.vm_id, None)
            if isinstance(error, Exception):
                record = record.now(state=MachineState.FAILED, error=problem_of(error))
            await self._roster.keep(record)
            raise

    async def _stop(self, record: MachineRecord, machine: RunningMachine) -> MachineView:
        await self._roster.keep(record.now(state=MachineState.STOPPING))
        self._roster.unwatch(record.vm_id)
        await machine.end(self._site.stop_grace_s)
        self._roster.running.pop(record.vm_id, None)
        await self._roster.keep(record.now(state=MachineState.STOPPED, error=None))
        return self.view(record.vm_id)

    async def _launch(
        self, record: MachineRecord, ready_timeout_s: float, *, fresh: bool
    ) -> MachineView:
        began = time.monotonic()
        if not fresh:  # a disk that goes on must never meet memory from before
            await self._hibernation.discard(record)
        prepared = await prepare(self._site, record, fresh=fresh)
        self._roster.records[record.vm_id] = prepared.record
        prepared_at = time.monotonic()
        machine = await prepared.launch(self._site)
        self._roster.running[record.vm_id] = machine
        launched_at = time.monotonic()
        await machine.until_ready(ready_timeout_s)
        log.info(
            "%s: prepared in %.2f s, VMM up in %.2f s, guest ready in %.2f s",
            record.vm_id,
            prepared_at - began,
            launched_at - prepared_at,
            time.monotonic() - launched_at,
        )
        running = prepared.record.now(state=MachineState.RUNNING, error=None, memory_lost="")
        if not fresh:
            wake = Wake(
                how="booted",
                reason=record.memory_lost,
                at=datetime.now(UTC),
                took_s=time.monotonic() - began,
            )
            running = running.now(wake=wake)
        await self._roster.keep(running)
        self._roster.watch(record.vm_id, machine)
        return self.view(record.vm_id)

    async def _cloned(self, record: MachineRecord, machine: RunningMachine) -> MachineView:
        self._roster.running[record.vm_id] = machine
        await self._roster.keep(record.now(state=MachineState.RUNNING, is_clone=True))
        self._roster.watch(record.vm_id, machine)
        return self.view(record.vm_id)

    async def _undo(self, vm_id: str, *, keeping_logs: bool) -> None:
        try:
            if machine := self._roster.running.get(vm_id):
                await machine.kill()
            if keeping_logs:
                await keep_logs(self._site, vm_id)
            await self._erase(vm_id)
        except Exception as error:  # What is left is taken by destroying, or by the next recovery.
            log.error("%s is not wholly undone: %s", vm_id, problem_of(error).message)

    async def _erase(self, vm_id: str) -> None:
        self._roster.unwatch(vm_id)
        await erase(self._site, vm_id, self._roster.running.get(vm_id))
        self._roster.forget(vm_id)

    def _new_record(self, asked: CreateMachine) -> MachineRecord:
        return MachineRecord(
            vm_id=asked.vm_id,
            machine_kind=asked.machine_kind,
            memory_mib=asked.memory_mib,
            vcpus=asked.vcpus,
            disk_mib=asked.disk_mib,
            labels=asked.labels,
            state=MachineState.CREATING,
            created_at=datetime.now(UTC),
            uid=self._roster.free_uid(),
        )

    def _require_same(self, known: MachineRecord, asked: CreateMachine) -> None:
        shape = ("machine_kind", "memory_mib", "vcpus", "disk_mib")
        if any(getattr(known, name) != getattr(asked, name) for name in shape):
            raise MachineBusy(f"Machine {known.vm_id} exists already, with another shape")

    def _kept(self, vm_id: str, path: Path) -> Path:
        if not path.exists():
            self._roster.record(vm_id)
        return path


def _require_somebodys(record: MachineRecord) -> None:
    """Raises MachineBusy for one that nobody has been given: who is made is not waited for here."""
    if record.state is MachineState.CREATING:
        raise MachineBusy(f"Machine {record.vm_id} is {record.state}", hint="Destroy it, or wait")
