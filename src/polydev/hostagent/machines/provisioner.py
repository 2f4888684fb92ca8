"""Provision machines: boot files, disk, keys, config drive and channel.

`ImageProvisioner` serves every driver whose machines boot from golden images; any other driver
provides its own (`ProvidesProvisioner`).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from polydev.hostagent.channel import Channel
from polydev.hostagent.channel.contract import GuestChannel
from polydev.hostagent.images import GoldenImage, ImageStore
from polydev.hostagent.machines.context import BootImages, Provisioner
from polydev.hostagent.machines.record import MachineFolder, MachineRecord, NetworkAttachment
from polydev.hostagent.provisioning import offline_files
from polydev.hostagent.provisioning.config_drive import MachineConfig, write_config_drive
from polydev.hostagent.provisioning.disks import copy_disk, make_disk
from polydev.hostagent.provisioning.ssh_keys import make_keys
from polydev.hostagent.settings import Egress, HostSettings
from polydev.hostagent.vmm.boot_files import BootFiles
from polydev.hostagent.vmm.contract import Driver, RunningVmm
from polydev.shared.domain import GuestFile, MachineKind
from polydev.shared.errors import BadSettings, GuestMisbehaved, MissingImage

_CA_BUNDLE = "/run/polydev/ca-bundle.pem"
_HOSTNAME_LENGTH = 11


class ConfigProvisioner:
    """The part that every provisioner shares: config drive and channel."""

    has_channel_nic = True
    """False if the private channel is vsock."""

    def __init__(self, settings: HostSettings) -> None:
        """Raises BadSettings if the additional authorities cannot be read."""
        self._settings = settings
        self._ca_pem = _read_ca(settings.egress_ca_file)

    async def write_config(
        self,
        folder: MachineFolder,
        record: MachineRecord,
        attachment: NetworkAttachment,
        nonce: str,
    ) -> None:
        """Write the config drive for the next start."""
        keys = await make_keys(folder.keys)
        config = MachineConfig(
            vm_id=record.vm_id,
            kind=record.machine_kind,
            hostname=record.vm_id[:_HOSTNAME_LENGTH],
            address=f"{attachment.address}/{attachment.prefix}",
            mac=attachment.mac,
            gateway=str(self._settings.gateway),
            dns=tuple(str(address) for address in self._settings.dns),
            channel_mac=attachment.channel_mac if self.has_channel_nic else None,
            ready_nonce=nonce,
            clock_s=int(time.time()),
            host_key=keys.host_private,
            authorized_key=keys.client_public,
            environment=environment(self._settings),
            ca_pem=self._ca_pem,
            token=await asyncio.to_thread(folder.read_token),
        )
        await write_config_drive(folder.config_drive, config, uid=record.uid)

    async def channel(self, folder: MachineFolder, vmm: RunningVmm) -> GuestChannel:
        """Return the channel of a machine; it connects at its first use."""
        return await self.ssh_channel(folder, vmm)

    async def ssh_channel(self, folder: MachineFolder, vmm: RunningVmm) -> Channel:
        keys = await make_keys(folder.keys)
        return Channel(vmm.open_channel, keys.host_public, keys.client_private.decode())

    def config_digest(self, kind: MachineKind) -> str:
        """Return a digest of the configuration that all machines of a kind share. Blocks."""
        settings = self._settings
        shared = {
            "kind": kind,
            "environment": environment(settings),
            "authorities": hashlib.sha256(self._ca_pem or b"").hexdigest(),
            "gateway": f"{settings.gateway} of {settings.subnet}",
            "dns": [str(address) for address in settings.dns],
        }
        return hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()[:16]

    async def foreign_channel(
        self, folder: MachineFolder, foreign: MachineFolder, vmm: RunningVmm
    ) -> GuestChannel | None:
        """Open a channel to a machine with another one's key."""
        keys, others = await make_keys(folder.keys), await make_keys(foreign.keys)
        return Channel(vmm.open_channel, keys.host_public, others.client_private.decode())

    def folder(self, record: MachineRecord) -> MachineFolder:
        return MachineFolder(self._settings.state_dir / "machines", record.vm_id)


class ImageProvisioner(ConfigProvisioner):
    """Provisions machines that boot from golden images."""

    def __init__(
        self, settings: HostSettings, images: ImageStore, *, has_channel_nic: bool = True
    ) -> None:
        super().__init__(settings)
        self._images = images
        self.has_channel_nic = has_channel_nic

    async def boot_files(self, kind: MachineKind) -> BootImages:
        """Return the boot files of a new machine. Raises MissingImage, ImageDamaged."""
        kernel, image = await asyncio.to_thread(
            lambda: (self._images.require("kernel"), self._images.require(kind))
        )
        return _boot_files(image, kernel)

    async def boot_files_of(self, record: MachineRecord) -> BootImages:
        """Return the files that a machine was booted from. Raises MissingImage, ImageDamaged."""
        image, kernel = await asyncio.to_thread(
            lambda: (self._images.named(record.image), self._images.named(record.kernel))
        )
        return _boot_files(image, kernel)

    async def make_disk(self, folder: MachineFolder, record: MachineRecord) -> None:
        """Create the machine's empty disk. Raises DiskFull."""
        cache = self._settings.state_dir / "cache"
        await make_disk(folder.disk, record.disk_mib, uid=record.uid, cache_dir=cache)

    async def save_disk(self, folder: MachineFolder, template: MachineFolder) -> None:
        """Copy the disk of a machine whose VMM has ended. Raises DiskFull."""
        await copy_disk(folder.disk, template.disk, uid=0)

    async def clone_disk(
        self, template: MachineFolder, folder: MachineFolder, record: MachineRecord
    ) -> None:
        """Copy a template's disk into a machine. Raises DiskFull."""
        await copy_disk(template.disk, folder.disk, uid=record.uid)

    async def write_offline(self, record: MachineRecord, files: Sequence[GuestFile]) -> None:
        """Write files into the disk of a machine at rest."""
        golden = await asyncio.to_thread(self._golden, record)
        await offline_files.write_offline(self.folder(record).disk, files, golden=golden)

    async def remove_offline(self, record: MachineRecord, paths: Sequence[str]) -> None:
        """Remove files from the disk of a machine at rest."""
        await offline_files.remove_offline(self.folder(record).disk, paths)

    async def read_offline(self, record: MachineRecord, path: str, max_bytes: int) -> bytes:
        """Read a file that a machine at rest wrote. Raises NoSuchFile, GuestMisbehaved."""
        disk = self.folder(record).disk
        return require_bounded(
            await offline_files.read_offline(disk, path, limit_bytes=max_bytes + 1), path, max_bytes
        )

    def _golden(self, record: MachineRecord) -> Path | None:
        try:
            return self._images.named(record.image).root_image
        except MissingImage:
            return None


@runtime_checkable
class ProvidesProvisioner(Protocol):
    """A driver whose machines have no golden images: it provides their disks itself."""

    def provisioner(self, settings: HostSettings) -> Provisioner:
        """Create the provisioner. Raises BadSettings."""


def provisioner_for(driver: Driver, settings: HostSettings, images: ImageStore) -> Provisioner:
    """Create the provisioner of a driver's machines. Raises BadSettings."""
    if isinstance(driver, ProvidesProvisioner):
        return driver.provisioner(settings)
    return ImageProvisioner(settings, images, has_channel_nic=driver.capabilities.channel_nic)


def probe_files(images: ImageStore) -> BootFiles:
    """Find a kernel that a driver may probe with. Raises MissingImage. Blocks."""
    image = images.require("kernel")
    return BootFiles(image.kernel, image.initramfs)


def _boot_files(image: GoldenImage, kernel: GoldenImage) -> BootImages:
    return BootImages(image.name, kernel.name, image.root_image, kernel.kernel, kernel.initramfs)


def require_bounded(content: bytes, path: str, max_bytes: int) -> bytes:
    """Return a file's content, unless it is too large. Raises GuestMisbehaved."""
    if len(content) > max_bytes:
        raise GuestMisbehaved(f"{path} in the machine is larger than {max_bytes} bytes")
    return content


def environment(settings: HostSettings) -> dict[str, str]:
    """Return the variables that the egress policy sets for programs in machines."""
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
        raise BadSettings("POLYDEV_EGRESS_CA_FILE contains no PEM certificate")
    return content
