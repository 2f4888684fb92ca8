"""What goes into a machine: boot files, disk, keys, config drive, channel.

Two ways to be a `site.Furnishing`, chosen with the driver by `drivers.py`: from golden images, and
for simulated machines, which have neither image nor disk. They bring together modules that do not
know each other, and decide nothing but the environment that the egress policy needs.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from polydev.hostagent.channel import Channel
from polydev.hostagent.images import GoldenImage, ImageStore
from polydev.hostagent.machines.context import BootFiles
from polydev.hostagent.machines.context import Channel as SiteChannel
from polydev.hostagent.machines.record import MachineFolder, MachineRecord, Place
from polydev.hostagent.provisioning import offline_files
from polydev.hostagent.provisioning.config_drive import MachineConfig, write_config_drive
from polydev.hostagent.provisioning.disks import copy_disk, make_disk
from polydev.hostagent.provisioning.ssh_keys import make_keys
from polydev.hostagent.settings import Egress, HostSettings
from polydev.hostagent.system.cancellation import in_thread
from polydev.hostagent.vmm.contract import RunningVmm
from polydev.shared.atomic_files import write_whole
from polydev.shared.domain import GuestFile, MachineKind
from polydev.shared.errors import BadPath, BadSettings, GuestMisbehaved, MissingImage, NoSuchFile
from polydev.testing.simulated_vmm import ROOT as SIMULATED_ROOT
from polydev.testing.simulated_vmm import SimulatedVmm

_CA_BUNDLE = "/run/polydev/ca-bundle.pem"
_HOSTNAME_LENGTH = 11


class _Configured:
    """What both have in common: config drive and channel."""

    has_channel_nic = True
    """False where the VMM's private channel is vsock."""

    def __init__(self, settings: HostSettings) -> None:
        """Raises BadSettings when the additional authorities cannot be read."""
        self._settings = settings
        self._ca_pem = _read_ca(settings.egress_ca_file)

    async def write_config(
        self, folder: MachineFolder, record: MachineRecord, place: Place, nonce: str
    ) -> None:
        """The config drive for the start that comes."""
        keys = await make_keys(folder.keys)
        config = MachineConfig(
            vm_id=record.vm_id,
            kind=record.machine_kind,
            hostname=record.vm_id[:_HOSTNAME_LENGTH],
            address=f"{place.address}/{place.prefix}",
            mac=place.mac,
            gateway=str(self._settings.gateway),
            dns=tuple(str(address) for address in self._settings.dns),
            channel_mac=place.channel_mac if self.has_channel_nic else None,
            ready_nonce=nonce,
            clock_s=int(time.time()),
            host_key=keys.host_private,
            authorized_key=keys.client_public,
            environment=environment(self._settings),
            ca_pem=self._ca_pem,
            token=await asyncio.to_thread(folder.read_token),
        )
        await write_config_drive(folder.config_drive, config, uid=record.uid)

    async def channel(self, folder: MachineFolder, vmm: RunningVmm) -> SiteChannel:
        """The channel of a machine; it connects when it is first used."""
        return await self._over_ssh(folder, vmm)

    async def _over_ssh(self, folder: MachineFolder, vmm: RunningVmm) -> Channel:
        keys = await make_keys(folder.keys)
        return Channel(vmm.open_channel, keys.host_public, keys.client_private.decode())

    def alike(self, kind: MachineKind) -> str:
        """Changes with what all machines of a kind are told alike. Blocks."""
        settings = self._settings
        told = {
            "kind": kind,
            "environment": environment(settings),
            "authorities": hashlib.sha256(self._ca_pem or b"").hexdigest(),
            "gateway": f"{settings.gateway} of {settings.subnet}",
            "dns": [str(address) for address in settings.dns],
        }
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]

    async def strangers_channel(
        self, folder: MachineFolder, stranger: MachineFolder, vmm: RunningVmm
    ) -> SiteChannel | None:
        """To a machine, but with another one's key."""
        keys, others = await make_keys(folder.keys), await make_keys(stranger.keys)
        return Channel(vmm.open_channel, keys.host_public, others.client_private.decode())

    def _folder(self, record: MachineRecord) -> MachineFolder:
        return MachineFolder(self._settings.state_dir / "machines", record.vm_id)


class GoldenFurnishing(_Configured):
    """Furnishes machines that boot from golden images."""

    def __init__(
        self, settings: HostSettings, images: ImageStore, *, has_channel_nic: bool = True
    ) -> None:
        super().__init__(settings)
        self._images = images
        self.has_channel_nic = has_channel_nic

    async def boot_files(self, kind: MachineKind) -> BootFiles:
        """What a machine of this kind boots from. Raises MissingImage, ImageDamaged."""
        kernel, image = await asyncio.to_thread(
            lambda: (self._images.require("kernel"), self._images.require(kind))
        )
        return _boot_files(image, kernel)

    async def boot_files_of(self, record: MachineRecord) -> BootFiles:
        """What a machine was booted from, current or not. Raises MissingImage, ImageDamaged."""
        image, kernel = await asyncio.to_thread(
            lambda: (self._images.named(record.image), self._images.named(record.kernel))
        )
        return _boot_files(image, kernel)

    async def make_disk(self, folder: MachineFolder, record: MachineRecord) -> None:
        """The machine's own empty disk. Raises DiskFull."""
        cache = self._settings.state_dir / "cache"
        await make_disk(folder.disk, record.disk_mib, uid=record.uid, cache_dir=cache)

    async def keep_disk(self, folder: MachineFolder, template: MachineFolder) -> None:
        """Copy the disk of a machine whose VMM has ended. Raises DiskFull."""
        await copy_disk(folder.disk, template.disk, uid=0)

    async def clone_disk(
        self, template: MachineFolder, folder: MachineFolder, record: MachineRecord
    ) -> None:
        """A machine's disk, as its template left it. Raises DiskFull."""
        await copy_disk(template.disk, folder.disk, uid=record.uid)

    async def write_offline(self, record: MachineRecord, files: Sequence[GuestFile]) -> None:
        """Write files into the disk of a machine at rest."""
        golden = await asyncio.to_thread(self._golden, record)
        await offline_files.write_offline(self._folder(record).disk, files, golden=golden)

    async def remove_offline(self, record: MachineRecord, paths: Sequence[str]) -> None:
        """Remove files from the disk of a machine at rest."""
        await offline_files.remove_offline(self._folder(record).disk, paths)

    async def read_offline(self, record: MachineRecord, path: str, max_bytes: int) -> bytes:
        """A file that a machine at rest wrote. Raises NoSuchFile, GuestMisbehaved when larger."""
        disk = self._folder(record).disk
        return _bounded(
            await offline_files.read_offline(disk, path, limit_bytes=max_bytes + 1), path, max_bytes
        )

    def _golden(self, record: MachineRecord) -> Path | None:
        try:
            return self._images.named(record.image).root_image
        except MissingImage:
            return None


class SimulatedFurnishing(_Configured):
    """Furnishes machines that the host agent plays itself: a folder stands for their disk."""

    async def boot_files(self, kind: MachineKind) -> BootFiles:
        nothing = Path("/dev/null")
        return BootFiles(f"{kind}-simulated", "kernel-simulated", nothing, nothing, nothing)

    async def boot_files_of(self, record: MachineRecord) -> BootFiles:
        return await self.boot_files(record.machine_kind)

    async def make_disk(self, folder: MachineFolder, record: MachineRecord) -> None:
        folder.disk.touch(mode=0o600)

    async def channel(self, folder: MachineFolder, vmm: RunningVmm) -> SiteChannel:
        channel = await self._over_ssh(folder, vmm)
        direct = vmm.direct_channel(channel) if isinstance(vmm, SimulatedVmm) else None
        return direct or channel

    async def keep_disk(self, folder: MachineFolder, template: MachineFolder) -> None:
        await in_thread(_copy_simulated, folder, template)

    async def clone_disk(
        self, template: MachineFolder, folder: MachineFolder, record: MachineRecord
    ) -> None:
        await in_thread(_copy_simulated, template, folder)

    async def strangers_channel(
        self, folder: MachineFolder, stranger: MachineFolder, vmm: RunningVmm
    ) -> SiteChannel | None:
        if isinstance(vmm, SimulatedVmm) and vmm.has_direct_channel:
            return None
        return await super().strangers_channel(folder, stranger, vmm)

    async def write_offline(self, record: MachineRecord, files: Sequence[GuestFile]) -> None:
        for file in files:
            await in_thread(self._write, record, file)

    async def remove_offline(self, record: MachineRecord, paths: Sequence[str]) -> None:
        for path in paths:
            self._place(record, path).unlink(missing_ok=True)

    async def read_offline(self, record: MachineRecord, path: str, max_bytes: int) -> bytes:
        try:
            content = await asyncio.to_thread(self._place(record, path).read_bytes)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise NoSuchFile(f"No {path} in {record.vm_id}") from None
        return _bounded(content, path, max_bytes)

    def _write(self, record: MachineRecord, file: GuestFile) -> None:
        place = self._place(record, file.path)
        if file.if_absent and place.exists():
            return
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(place, file.content, mode=file.mode, durable=False)

    def _place(self, record: MachineRecord, path: str) -> Path:
        if not path.startswith("/") or ".." in path.split("/"):
            raise BadPath(f"{path!r} is not an absolute, plain path to a file")
        return self._folder(record).path / SIMULATED_ROOT / path.lstrip("/")


def _copy_simulated(source: MachineFolder, target: MachineFolder) -> None:
    """A simulated machine's files, but for those that it has in memory."""
    target.disk.touch(mode=0o600)
    root = source.path / SIMULATED_ROOT
    in_memory = shutil.ignore_patterns("run")
    shutil.copytree(root, target.path / SIMULATED_ROOT, ignore=in_memory, dirs_exist_ok=True)


def _boot_files(image: GoldenImage, kernel: GoldenImage) -> BootFiles:
    return BootFiles(image.name, kernel.name, image.root_image, kernel.kernel, kernel.initramfs)


def _bounded(content: bytes, path: str, max_bytes: int) -> bytes:
    if len(content) > max_bytes:
        raise GuestMisbehaved(f"{path} in the machine is larger than {max_bytes} bytes")
    return content


def environment(settings: HostSettings) -> dict[str, str]:
    """What the egress policy wants every program in a machine to know."""
    variables: dict[str, str] = {}
    if settings.egress is Egress.PROXY and settings.egress_proxy:
        for name in ("HTTPS_PROXY", "HTTP_PROXY"):
            variables[name] = variables[name.lower()] = settings.egress_proxy
        variables["NO_PROXY"] = variables["no_proxy"] = "localhost,127.0.0.1,::1"
    if settings.egress_ca_file:
        for name in ("SSL_CERT_FILE", "CODEX_CA_CERTIFICATE", "NODE_EXTRA_CA_CERTS"):
            variables[name] = _CA_BUNDLE
    return variables


def _read_ca(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadSettings(f"POLYDEV_EGRESS_CA_FILE cannot be read: {error.strerror}") from None
    if b"-----BEGIN CERTIFICATE-----" not in content:
        raise BadSettings("POLYDEV_EGRESS_CA_FILE holds no PEM certificate")
    return content
