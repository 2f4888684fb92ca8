"""Health checks of this host: compare its actual state with the records.

The host agent reports them at `GET /diagnosis`; `polydev doctor` runs them itself, as root, if no
agent answers. They change nothing. Each failed check states a remedy. `network/drift_check.py`
checks the network.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from polydev.hostagent.images import GoldenImage, ImageKind, ImageStore
from polydev.hostagent.machines import inventory
from polydev.hostagent.machines.record import MachineFolder, MachineRecord
from polydev.hostagent.machines.service import MachineService
from polydev.hostagent.network import Network
from polydev.hostagent.resources.memory_admission import available_mib
from polydev.hostagent.settings import HostSettings
from polydev.hostagent.vmm.cgroups import Cgroups
from polydev.hostagent.vmm.contract import Probe
from polydev.hostagent.vmm.driver_selection import capabilities_of
from polydev.shared.domain import Finding, MachineState
from polydev.shared.errors import ImageDamaged, MissingImage, PolydevError
from polydev.shared.hints import Hint
from polydev.shared.host_protocol import Inventory, WarmView

LEAST_FREE_MIB = 1024
LEAST_FREE_INODES = 2000

_RESTART_HINT = Hint.RESTART_TO_CLEAN_UP.text()


@dataclass(frozen=True, slots=True)
class HealthChecker:
    """Checks one host."""

    settings: HostSettings
    network: Network

    async def diagnose(
        self, machines: MachineService, probe: Probe, warm: WarmView
    ) -> list[Finding]:
        """Check the host of this agent."""
        before = machines.records()
        there = await machines.inventory()
        records = {record.vm_id: record for record in (*before, *machines.records())}
        found = await self._all(records, there)
        return [_driver(probe), *found, Finding("warm start", True, warm.words)]

    async def diagnose_without_agent(self) -> list[Finding]:
        """Check a host whose agent does not answer. Needs root."""
        records = await asyncio.to_thread(_records_on_disk, self.settings.state_dir / "machines")
        there = await inventory.inspect_without_agent(self.settings, self.network, list(records))
        return await self._all(records, there)

    async def _all(self, records: Mapping[str, MachineRecord], there: Inventory) -> list[Finding]:
        folders = self.settings.state_dir / "machines"
        uids = {
            vm_id: record.uid
            for vm_id, record in records.items()
            if record.state is MachineState.RUNNING and vm_id in there.processes
        }
        return [
            *await asyncio.to_thread(lambda: list(images(self.settings))),
            await asyncio.to_thread(disk_space, folders),
            *await asyncio.to_thread(lambda: list(memory(self.settings, records, there))),
            *_machines(folders, records, there),
            *await self._network(uids),
            *_sockets(self.settings, there),
            *_orphans(folders, records, there),
        ]

    async def _network(self, uids: Mapping[str, int]) -> list[Finding]:
        try:
            return await self.network.inspect(uids)
        except PolydevError as error:
            return [Finding("namespace", False, error.message, error.hint or _RESTART_HINT)]


def images(settings: HostSettings) -> Iterator[Finding]:
    """Check the golden images by their sizes, not checksums. Blocks."""
    if not capabilities_of(settings.driver).needs_images:
        yield Finding("images", True, "Simulated machines need none")
        return
    store = ImageStore(settings.images_dir)
    try:
        found = store.list()
    except ImageDamaged as error:
        yield Finding("images", False, error.message, error.hint)
        return
    for kind in ImageKind:
        yield _image(store, kind, [image for image in found if image.kind is kind])


def _image(store: ImageStore, kind: ImageKind, found: Sequence[GoldenImage]) -> Finding:
    """Check the image that machines boot from: the pinned one, else the current one."""
    current = store.find(kind)
    build = f"Build it: polydev image build {kind}"
    try:
        pinned = store.pinned(kind)
        if pinned is None and current is None:
            message = f"There is no image `{kind}` in {store.root}"
            if found:
                where = f"{found[0].name} in {store.root}"
                message = f"{where} is out of date: the recipe has changed since"
            return Finding("images", False, message, build)
        image = store.require(kind)
        store.compare_sizes(image)
    except (ImageDamaged, MissingImage) as error:
        return Finding("images", False, error.message, error.hint)
    message = f"{image.name}, {image.size / 2**20:.0f} MiB"
    if pinned is not None:
        newest = "" if current is None or current == image else f" rather than {current.name}"
        message += f", pinned by `polydev image use`{newest}"
    return Finding("images", True, message)


def disk_space(folder: Path) -> Finding:
    """Check the free space for another machine. Blocks."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free_mib = shutil.disk_usage(existing).free // 2**20
    message = f"{free_mib / 1024:.1f} GiB free for {folder}"
    inodes = os.statvfs(existing)
    if inodes.f_files and inodes.f_favail < LEAST_FREE_INODES:
        message = f"{inodes.f_favail} more files for {folder}"
    elif free_mib >= LEAST_FREE_MIB:
        return Finding("disk space", True, message)
    return Finding("disk space", False, f"Only {message}", Hint.FREE_HOST_DISK.text())


def memory(
    settings: HostSettings, records: Mapping[str, MachineRecord], there: Inventory
) -> Iterator[Finding]:
    """Report the memory of machines, and how it is bounded. Blocks."""
    if not capabilities_of(settings.driver).host_memory:
        return
    running = [record for vm_id, record in records.items() if vm_id in there.processes]
    usage = f"Running machines have {sum(it.memory_mib for it in running)} MiB; {available_mib()}"
    cgroups = Cgroups.inspect(settings.cgroup)
    bound = f"each is limited {cgroups.reason}"
    if cgroups.root is None:
        bound = f"none is limited ({cgroups.reason}), but the kernel kills them first"
    yield Finding("memory", True, f"{usage} MiB are available; {bound}")


def _driver(probe: Probe) -> Finding:
    if probe.usable:
        return Finding("driver", True, f"{probe.accelerator}: {probe.reason}")
    message = f"No machine can be started on this host: {probe.reason}"
    return Finding("driver", False, message, "Repair that, then restart Polydev")


def _machines(
    folders: Path, records: Mapping[str, MachineRecord], there: Inventory
) -> list[Finding]:
    wrong = []
    for vm_id, record in records.items():
        console = MachineFolder(folders, vm_id).console_log
        again = f"Start it again: polydev machine start {vm_id}; its console log is {console}"
        if record.state is MachineState.FAILED:
            why = record.error.message if record.error else f"Machine {vm_id} failed"
            wrong.append(Finding("machines", False, _naming(why, vm_id), again, vm_id))
        elif record.state is MachineState.RUNNING and vm_id not in there.processes:
            message = f"Machine {vm_id} should run, but its VMM has ended"
            wrong.append(Finding("machines", False, message, again, vm_id))
        elif record.state is MachineState.HIBERNATED and not _has_saved_memory(folders, vm_id):
            message = f"Machine {vm_id} is hibernated, but its saved memory is gone"
            boot = f"Boot its disk: polydev machine resume {vm_id}"
            wrong.append(Finding("machines", False, message, boot, vm_id))
    if not wrong:
        states = [record.state for record in records.values()]
        running, hibernated = map(states.count, (MachineState.RUNNING, MachineState.HIBERNATED))
        rest = f", {hibernated} hibernated" if hibernated else ""
        wrong.append(Finding("machines", True, f"{len(records)}, {running} of them running{rest}"))
    return wrong


def _has_saved_memory(folders: Path, vm_id: str) -> bool:
    return MachineFolder(folders, vm_id).memory.exists()


def _naming(message: str, vm_id: str) -> str:
    return message if vm_id in message else f"Machine {vm_id}: {message}"


def _sockets(settings: HostSettings, there: Inventory) -> Iterator[Finding]:
    """Check that each socket belongs to the host agent or a running VMM."""
    stale = [
        path
        for path in map(Path, there.sockets)
        if path != settings.host_socket and path.parent.name not in there.processes
    ]
    for path in stale:
        yield Finding("sockets", False, f"No process listens at {path}", _RESTART_HINT)
    if not stale:
        yield Finding("sockets", True, f"{len(there.sockets)}, each with a listening process")


def _orphans(
    folders: Path, records: Mapping[str, MachineRecord], there: Inventory
) -> Iterator[Finding]:
    """Find what belongs to no machine; the network checks TAPs and rules."""
    left = [_orphan_folder(folders / name) for name in there.folders if name not in records]
    left += [
        Finding("orphans", False, f"VMM process {pid} belongs to no machine", _RESTART_HINT)
        for vm_id, pid in there.processes.items()
        if vm_id not in records
    ]
    left += [
        Finding(
            "orphans",
            False,
            f"Address {address} is reserved for {vm_id}, which does not exist",
            _RESTART_HINT,
        )
        for vm_id, address in there.addresses.items()
        if vm_id not in records
    ]
    yield from left or [
        Finding("orphans", True, "Every folder, process and address belongs to a machine")
    ]


def _orphan_folder(path: Path) -> Finding:
    if not MachineFolder(path.parent, path.name).record.exists():
        return Finding("orphans", False, f"{path} belongs to no machine", _RESTART_HINT)
    return Finding(
        "orphans",
        False,
        f"The record in {path} is unreadable, so its machine is ignored",
        f"Restore its machine.json from a backup, or remove {path} with the disk in it",
    )


def _records_on_disk(folder: Path) -> dict[str, MachineRecord]:
    names = sorted(path.name for path in folder.glob("vm-*"))
    records = ((name, MachineFolder(folder, name).read()) for name in names)
    return {name: record for name, record in records if record is not None}
