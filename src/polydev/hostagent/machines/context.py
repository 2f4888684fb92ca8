"""What the machines of this host are made with: folders, driver, network, images, channel.

`__main__.py` puts the real parts together, tests put theirs; `machine.py` uses them. The protocols
here are the whole of what machines ask of those parts.
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
    """A machine's place in the VM network (network.Attachment)."""

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
    """What the network finds by looking (network.NetworkState)."""

    @property
    def taps(self) -> Sequence[str]: ...
    @property
    def addresses(self) -> Mapping[str, str]: ...
    @property
    def firewall(self) -> Sequence[str]: ...


class Network(Protocol):
    """The VM network (network.Network)."""

    @property
    def netns(self) -> str: ...
    async def attach(self, vm_id: str, uid: int) -> Attachment: ...
    async def rename(self, vm_id: str, new_vm_id: str) -> None: ...
    async def detach(self, vm_id: str) -> None: ...
    async def sweep(self, keep: Collection[str] | None) -> Sequence[str]: ...
    async def state(self) -> NetworkState: ...


@dataclass(frozen=True, slots=True)
class BootImages:
    """What a machine of one kind boots from; `image` and `kernel` name the golden images."""

    image: str
    kernel: str
    root_image: Path
    vmlinux: Path
    initramfs: Path


class Provisioner(Protocol):
    """What goes into a machine besides its VMM (furnishing.py)."""

    async def boot_files(self, kind: MachineKind) -> BootImages:
        """Raises MissingImage, ImageDamaged."""

    async def boot_files_of(self, record: MachineRecord) -> BootImages:
        """What a machine was booted from. Raises MissingImage if that is there no more."""

    async def make_disk(self, folder: MachineFolder, record: MachineRecord) -> None:
        """The machine's own empty disk and its keys. Raises DiskFull."""

    async def write_config(
        self, folder: MachineFolder, record: MachineRecord, place: NetworkAttachment, nonce: str
    ) -> None:
        """The config drive, written anew before each start. Raises DiskFull."""

    async def channel(self, folder: MachineFolder, vmm: RunningVmm) -> GuestChannel: ...

    # Warm machines: what a template keeps of a machine, and a clone gets of a template.
    def alike(self, kind: MachineKind) -> str:
        """Changes with what all machines of a kind are told alike. Blocks."""

    async def keep_disk(self, folder: MachineFolder, template: MachineFolder) -> None:
        """Copy the disk of a machine whose VMM has ended. Raises DiskFull."""

    async def clone_disk(
        self, template: MachineFolder, folder: MachineFolder, record: MachineRecord
    ) -> None:
        """A machine's disk, as its template left it. Raises DiskFull."""

    async def strangers_channel(
        self, folder: MachineFolder, stranger: MachineFolder, vmm: RunningVmm
    ) -> GuestChannel | None:
        """To a machine, but with another one's key; None where keys open nothing."""

    # Into and out of the disk of a machine at rest. Raise ImageInUse, ImageDamaged, BadPath.
    async def write_offline(self, record: MachineRecord, files: Sequence[GuestFile]) -> None: ...
    async def remove_offline(self, record: MachineRecord, paths: Sequence[str]) -> None: ...
    async def read_offline(self, record: MachineRecord, path: str, max_bytes: int) -> bytes: ...


@dataclass(frozen=True, slots=True)
class HostContext:
    """The parts, and where things lie."""

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
    """From a guest's going on until its channel must answer."""

    def folder(self, vm_id: str) -> MachineFolder:
        """A machine's folder, there or not."""
        return MachineFolder(self.machines_dir, vm_id)
