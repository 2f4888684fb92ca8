"""What goes into a machine: boot files, disk, keys, config drive, channel.

The real `site.Furnishing`; `__main__.py` makes it from the settings. It brings together modules
that do not know each other, and decides nothing but the environment that the egress policy needs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

from polydev.domain import GuestFile, MachineKind
from polydev.errors import BadSettings, GuestMisbehaved, MissingImage
from polydev.hostd.channel import Channel
from polydev.hostd.config_drive import MachineConfig, write_config_drive
from polydev.hostd.disks import make_disk
from polydev.hostd.images import ImageStore
from polydev.hostd.keys import make_keys
from polydev.hostd.offline import read_offline, remove_offline, write_offline
from polydev.hostd.record import MachineFolder, MachineRecord, Place
from polydev.hostd.site import BootFiles
from polydev.hostd.vmm.vmm import RunningVmm
from polydev.settings import Egress, HostSettings

_CA_BUNDLE = "/run/polydev/ca-bundle.pem"
_HOSTNAME_LENGTH = 11


class RealFurnishing:
    """Furnishes machines that run a guest from the golden images."""

    def __init__(self, settings: HostSettings, images: ImageStore) -> None:
        """Raises BadSettings when the additional authorities cannot be read."""
        self._settings = settings
        self._images = images
        self._ca_pem = _read_ca(settings.egress_ca_file)

    async def boot_files(self, kind: MachineKind) -> BootFiles:
        """What a machine of this kind boots from. Raises MissingImage, ImageDamaged."""
        kernel, image = await asyncio.to_thread(
            lambda: (self._images.require("kernel"), self._images.require(kind))
        )
        return BootFiles(image.name, kernel.name, image.root_image, kernel.kernel, kernel.initramfs)

    async def make_disk(self, folder: MachineFolder, record: MachineRecord) -> None:
        """An empty disk, and the keys of the channel."""
        cache = self._settings.state_dir / "cache"
        await make_disk(folder.disk, record.disk_mib, uid=record.uid, cache_dir=cache)
        await make_keys(folder.keys)

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
            channel_mac=place.channel_mac,
            ready_nonce=nonce,
            clock_s=int(time.time()),
            host_key=keys.host_private,
            authorized_key=keys.client_public,
            environment=environment(self._settings),
            ca_pem=self._ca_pem,
            token=await asyncio.to_thread(folder.read_token),
        )
        await write_config_drive(folder.config_drive, config, uid=record.uid)

    async def channel(self, folder: MachineFolder, vmm: RunningVmm) -> Channel:
        """The channel of a machine; it connects when it is first used."""
        keys = await make_keys(folder.keys)
        return Channel(vmm.open_channel, keys.host_public, keys.client_private.decode())

    async def write_offline(self, record: MachineRecord, files: Sequence[GuestFile]) -> None:
        """Write files into the disk of a machine at rest."""
        golden = await asyncio.to_thread(self._golden, record)
        await write_offline(self._disk(record), files, golden=golden)

    async def remove_offline(self, record: MachineRecord, paths: Sequence[str]) -> None:
        """Remove files from the disk of a machine at rest."""
        await remove_offline(self._disk(record), paths)

    async def read_offline(self, record: MachineRecord, path: str, max_bytes: int) -> bytes:
        """A file that a machine at rest wrote. Raises NoSuchFile, GuestMisbehaved when larger."""
        content = await read_offline(self._disk(record), path, limit_bytes=max_bytes + 1)
        if len(content) > max_bytes:
            raise GuestMisbehaved(f"{path} in {record.vm_id} is larger than {max_bytes} bytes")
        return content

    def _disk(self, record: MachineRecord) -> Path:
        return MachineFolder(self._settings.state_dir / "machines", record.vm_id).disk

    def _golden(self, record: MachineRecord) -> Path | None:
        try:
            return self._images.named(record.image).root_image
        except MissingImage:
            return None


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
