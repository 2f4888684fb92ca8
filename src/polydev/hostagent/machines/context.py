"""The parts that machines of a host share: folders, driver, network, provisioner.

`__main__` assembles the real parts, tests assemble theirs. The protocols here are everything that
machines need of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from polydev.hostagent.channel.contract import GuestChannel
from polydev.hostagent.machines.record import MachineFolder, MachineRecord, NetworkAttachment
from polydev.hostagent.resources.memory_admission import MemoryAdmission
from polydev.hostagent.snapshots import MemoryKeys
from polydev.hostagent.system.log_archive import LogArchive
from polydev.hostagent.vmm.contract import Driver, RunningVmm
from polydev.shared.domain import GuestFile, MachineKind


class Attachment(Protocol):
    """A machine's attachment to the VM network; see `network.Attachment`."""

    @property
    def tap(self) -> str: ...
    @property
    def mac(self) -> str: ...
    @property
    def address(self) -> str: ...
    @property
    def prefix(self) -> int: ...
    @property
    def channel_port(self) -> int: ...
    @property
    def channel_mac(self) -> str: ...


class NetworkState(Protocol):
    """The observed state of the network; see `network.NetworkState`."""

    @property
    def taps(self) -> Sequence[str]: ...
    @property
    def addresses(self) -> Mapping[str, str]: ...
    @property
    def firewall(self) -> Sequence[str]: ...


class Network(Protocol):
    """The VM network; see `network.Network`."""

    @property
    def netns(self) -> str: ...
    async def attach(self, vm_id: str, uid: int) -> Attachment: ...
    async def rename(self, vm_id: str, new_vm_id: str) -> None: ...
    async def detach(self, vm_id: str) -> None: ...
    async def sweep(self, keep: Collection[str] | None) -> Sequence[str]: ...
    async def state(self) -> NetworkState: ...


@dataclass(frozen=True, slots=True)
class BootImages:
    """The boot files of a machine; `image` and `kernel` name the golden images."""

    image: str
    kernel: str
    root_image: Path
    vmlinux: Path
    initramfs: Path


class Provisioner(Protocol):
    """The files, disk, keys and channel of machines; see `provisioner.py`."""

    async def boot_files(self, kind: MachineKind) -> BootImages:
        """Return the boot files of a new machine. Raises MissingImage, ImageDamaged."""

    async def boot_files_of(self, record: MachineRecord) -> BootImages:
        """Return the files that a machine was booted from. Raises MissingImage if they are gone."""

    async def make_disk(self, folder: MachineFolder, record: MachineRecord) -> None:
        """Create the machine's empty disk. Raises DiskFull."""

    async def write_config(
        self,
        folder: MachineFolder,
        record: MachineRecord,
        attachment: NetworkAttachment,
        nonce: str,
    ) -> None:
        """Write the config drive, before each start. Raises DiskFull."""

    async def channel(self, folder: MachineFolder, vmm: RunningVmm) -> GuestChannel: ...

    # Templates and clones of the warm pool.
    def config_digest(self, kind: MachineKind) -> str:
        """Return a digest of the configuration that all machines of a kind share. Blocks."""

    async def save_disk(self, folder: MachineFolder, template: MachineFolder) -> None:
        """Copy the disk of a machine whose VMM has ended. Raises DiskFull."""

    async def clone_disk(
        self, template: MachineFolder, folder: MachineFolder, record: MachineRecord
    ) -> None:
        """Copy a template's disk into a machine. Raises DiskFull."""

    async def foreign_channel(
        self, folder: MachineFolder, foreign: MachineFolder, vmm: RunningVmm
    ) -> GuestChannel | None:
        """Open a channel with another machine's key; None if channels need no key."""

    # Files on the disk of a machine at rest. Raise ImageInUse, ImageDamaged, BadPath.
    async def write_offline(self, record: MachineRecord, files: Sequence[GuestFile]) -> None: ...
    async def remove_offline(self, record: MachineRecord, paths: Sequence[str]) -> None: ...
    async def read_offline(self, record: MachineRecord, path: str, max_bytes: int) -> bytes: ...


@dataclass(frozen=True, slots=True)
class HostContext:
    """The parts and folders of one host."""

    machines_dir: Path
    sockets_dir: Path
    log_archive: LogArchive
    driver: Driver
    network: Network
    provisioner: Provisioner
    memory_keys: MemoryKeys = field(default=MemoryKeys(None))
    admission: MemoryAdmission = field(default_factory=lambda: MemoryAdmission(None))
    stop_grace_s: float = field(default=20.0)
    wake_limit_s: float = field(default=60.0)
    """Time limit for a resumed guest's channel to answer."""

    def folder(self, vm_id: str) -> MachineFolder:
        """Return a machine's folder, whether it exists or not."""
        return MachineFolder(self.machines_dir, vm_id)
