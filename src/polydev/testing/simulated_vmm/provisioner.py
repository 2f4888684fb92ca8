"""Provision simulated machines: a folder stands for each machine's disk."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path

from polydev.hostagent.channel.contract import GuestChannel
from polydev.hostagent.machines.context import BootImages
from polydev.hostagent.machines.provisioner import ConfigProvisioner, require_bounded
from polydev.hostagent.machines.record import MachineFolder, MachineRecord
from polydev.hostagent.system.cancellation import run_in_thread_shielded
from polydev.hostagent.vmm.contract import RunningVmm
from polydev.shared.atomic_files import write_whole
from polydev.shared.domain import GuestFile, MachineKind
from polydev.shared.errors import BadPath, NoSuchFile
from polydev.testing.simulated_vmm.machine import SimulatedVmm

ROOT = "simulated-root"
"""Name of the folder, in a machine's own, that is the machine's filesystem."""


class SimulatedProvisioner(ConfigProvisioner):
    """Provisions simulated machines; a folder replaces their disk."""

    async def boot_files(self, kind: MachineKind) -> BootImages:
        nothing = Path("/dev/null")
        return BootImages(f"{kind}-simulated", "kernel-simulated", nothing, nothing, nothing)

    async def boot_files_of(self, record: MachineRecord) -> BootImages:
        return await self.boot_files(record.machine_kind)

    async def make_disk(self, folder: MachineFolder, record: MachineRecord) -> None:
        folder.disk.touch(mode=0o600)

    async def channel(self, folder: MachineFolder, vmm: RunningVmm) -> GuestChannel:
        channel = await self.ssh_channel(folder, vmm)
        direct = vmm.direct_channel(channel) if isinstance(vmm, SimulatedVmm) else None
        return direct or channel

    async def save_disk(self, folder: MachineFolder, template: MachineFolder) -> None:
        await run_in_thread_shielded(_copy_simulated, folder, template)

    async def clone_disk(
        self, template: MachineFolder, folder: MachineFolder, record: MachineRecord
    ) -> None:
        await run_in_thread_shielded(_copy_simulated, template, folder)

    async def foreign_channel(
        self, folder: MachineFolder, foreign: MachineFolder, vmm: RunningVmm
    ) -> GuestChannel | None:
        if isinstance(vmm, SimulatedVmm) and vmm.has_direct_channel:
            return None
        return await super().foreign_channel(folder, foreign, vmm)

    async def write_offline(self, record: MachineRecord, files: Sequence[GuestFile]) -> None:
        for file in files:
            await run_in_thread_shielded(self._write, record, file)

    async def remove_offline(self, record: MachineRecord, paths: Sequence[str]) -> None:
        for path in paths:
            self._host_path(record, path).unlink(missing_ok=True)

    async def read_offline(self, record: MachineRecord, path: str, max_bytes: int) -> bytes:
        try:
            content = await asyncio.to_thread(self._host_path(record, path).read_bytes)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise NoSuchFile(f"No {path} in {record.vm_id}") from None
        return require_bounded(content, path, max_bytes)

    def _write(self, record: MachineRecord, file: GuestFile) -> None:
        path = self._host_path(record, file.path)
        if file.if_absent and path.exists():
            return
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(path, file.content, mode=file.mode, durable=False)

    def _host_path(self, record: MachineRecord, path: str) -> Path:
        if not path.startswith("/") or ".." in path.split("/"):
            raise BadPath(f"{path!r} is not an absolute, plain path to a file")
        return self.folder(record).path / ROOT / path.lstrip("/")


def _copy_simulated(source: MachineFolder, target: MachineFolder) -> None:
    """Copy a simulated machine's files, except those in memory."""
    target.disk.touch(mode=0o600)
    root = source.path / ROOT
    in_memory = shutil.ignore_patterns("run")
    shutil.copytree(root, target.path / ROOT, ignore=in_memory, dirs_exist_ok=True)
