"""Parts of a `MachineService` for unit tests: real processes, and failures on demand."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from polydev.hostagent.channel.contract import GuestConnection, GuestProgram
from polydev.hostagent.channel.file_browser import FileBrowser
from polydev.hostagent.machines.context import BootImages, HostContext
from polydev.hostagent.machines.record import MachineFolder, MachineRecord, NetworkAttachment
from polydev.hostagent.network import Attachment, NetworkState
from polydev.hostagent.snapshots import MemoryKeys
from polydev.hostagent.system.log_archive import LogArchive
from polydev.hostagent.vmm.contract import (
    ExitReport,
    LaunchSpec,
    Probe,
    RunningVmm,
    SnapshotSink,
    SnapshotSource,
)
from polydev.shared.domain import GuestFile, MachineKind
from polydev.shared.errors import ChannelLost, VmmFailed
from polydev.shared.host_protocol import ExecRequest

STEPS = ("boot_files", "attach", "make_disk", "write_config", "launch", "channel", "ready")


class Injected(Exception):
    """An error that no part expects."""


@dataclass
class Faults:
    """The steps at which to fail, or to hang."""

    fail_at: str | None = None
    error: Exception = field(default_factory=Injected)
    hang_at: str | None = None
    hanging: asyncio.Event = field(default_factory=asyncio.Event)

    async def reach(self, step: str) -> None:
        if step == self.hang_at:
            self.hanging.set()
            await asyncio.Event().wait()
        if step == self.fail_at:
            raise self.error


class SleepingVmm:
    """A process that does nothing, in place of a VMM."""

    def __init__(self, pid: int, faults: Faults, driver: SleepingDriver, folder: Path) -> None:
        self.pid = pid
        self._faults = faults
        self._driver = driver
        self._folder = folder
        self._pidfd = os.pidfd_open(pid)
        self._ended = asyncio.Event()
        self._status: int | None = None
        asyncio.get_running_loop().add_reader(self._pidfd, self._notice)

    def _notice(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        try:
            _, status = os.waitpid(self.pid, 0)
            self._status = os.waitstatus_to_exitcode(status)
        except ChildProcessError:
            pass
        self._ended.set()

    async def wait_ready(self) -> None:
        await self._faults.reach("ready")

    async def open_channel(self) -> socket.socket:
        raise AssertionError("there is no guest")

    async def request_shutdown(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    async def save(self, sink: SnapshotSink) -> None:
        await self._faults.reach("pause")
        os.kill(self.pid, signal.SIGSTOP)
        memory = self._driver.memories[self.pid]
        for start in range(0, len(memory), 1_000_000):
            await self._faults.reach("save")
            await sink.write(memory[start : start + 1_000_000])

    async def resume(self) -> None:
        await self._faults.reach("resume")
        if self._ended.is_set():
            raise VmmFailed("It has ended")
        assert not (self._folder / "memory.saved").exists(), "its memory would be used twice"
        os.kill(self.pid, signal.SIGCONT)

    async def kill(self) -> None:
        await self._faults.reach("kill")
        if not self._ended.is_set():
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            await self._ended.wait()

    async def wait(self) -> ExitReport:
        await self._ended.wait()
        return ExitReport(self._status, "")

    async def detach(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)


class SleepingDriver:
    """Starts processes that sleep, and stores their pids in the machines' folders."""

    name = "sleeping"

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self.pids: dict[Path, int] = {}
        self.memories: dict[int, bytes] = {}
        """The memory of each process; like the processes, it outlives an agent."""

    async def probe(self) -> Probe:
        return Probe(usable=True, accelerator="none", reason="")

    async def launch(self, spec: LaunchSpec) -> RunningVmm:
        await self._faults.reach("launch")
        (spec.folder / "console.log").write_bytes(b"boot\x1b[2J\x07 of a machine\n" * 20)
        return self._started(spec, b"")

    async def fingerprint(self, spec: LaunchSpec) -> str:
        return f"memory: {spec.memory_mib}\n"

    async def restore(self, spec: LaunchSpec, source: SnapshotSource) -> RunningVmm:
        await self._faults.reach("restore")
        memory = b""
        while piece := await source.read():
            await self._faults.reach("load")
            memory += piece
        vmm = self._started(spec, memory)
        os.kill(vmm.pid, signal.SIGSTOP)
        return vmm

    def _started(self, spec: LaunchSpec, memory: bytes) -> SleepingVmm:
        pid = os.posix_spawn("/bin/sleep", ["sleep", "1000"], {})
        self.pids[spec.folder] = pid
        self.memories[pid] = memory
        (spec.folder / "pid").write_text(str(pid))
        return SleepingVmm(pid, self._faults, self, spec.folder)

    async def adopt(self, spec: LaunchSpec) -> RunningVmm | None:
        try:
            pid = int((spec.folder / "pid").read_text())
            return SleepingVmm(pid, self._faults, self, spec.folder) if _is_alive(pid) else None
        except (OSError, ValueError):
            return None

    def find_orphans(self, folders: Sequence[Path]) -> Sequence[int]:
        strangers = (pid for folder, pid in self.pids.items() if folder not in folders)
        return [pid for pid in strangers if _is_alive(pid)]


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


class InMemoryNetwork:
    """Assigns network attachments, without a kernel."""

    netns = "none"

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self.attachments: dict[str, Attachment] = {}

    async def attach(self, vm_id: str, uid: int) -> Attachment:
        await self._faults.reach("attach")
        used = {int(attachment.tap.removeprefix("pd")) for attachment in self.attachments.values()}
        index = next(number for number in range(5, 250) if number not in used)
        attachment = Attachment(
            tap=f"pd{index}",
            mac=f"02:01:c0:a8:64:{index:02x}",
            address=f"192.168.100.{index}",
            prefix=24,
            channel_port=22000 + index,
            channel_mac=f"02:02:c0:a8:64:{index:02x}",
        )
        return self.attachments.setdefault(vm_id, attachment)

    async def rename(self, vm_id: str, new_vm_id: str) -> None:
        await self._faults.reach("rename")
        self.attachments[new_vm_id] = self.attachments.pop(vm_id)

    async def detach(self, vm_id: str) -> None:
        self.attachments.pop(vm_id, None)

    async def sweep(self, keep: Collection[str] | None) -> list[str]:
        for vm_id in self.attachments.keys() - set(self.attachments if keep is None else keep):
            del self.attachments[vm_id]
        return []

    async def state(self) -> NetworkState:
        taps = tuple(attachment.tap for attachment in self.attachments.values())
        addresses = {vm_id: attachment.address for vm_id, attachment in self.attachments.items()}
        return NetworkState(taps, addresses, taps)


_NOTHING = Path("/dev/null")


class BareProvisioner:
    """Provisions machines that run no guest."""

    async def boot_files(self, kind: MachineKind) -> BootImages:
        return BootImages(f"{kind}-simulated", "kernel-simulated", _NOTHING, _NOTHING, _NOTHING)

    async def boot_files_of(self, record: MachineRecord) -> BootImages:
        return await self.boot_files(record.machine_kind)

    async def make_disk(self, folder: MachineFolder, record: MachineRecord) -> None:
        folder.disk.touch(mode=0o600)

    async def write_config(
        self,
        folder: MachineFolder,
        record: MachineRecord,
        attachment: NetworkAttachment,
        nonce: str,
    ) -> None:
        folder.config_drive.touch(mode=0o600)

    async def channel(self, folder: MachineFolder, vmm: RunningVmm) -> NoGuestChannel:
        return NoGuestChannel()

    async def write_offline(self, record: MachineRecord, files: Sequence[GuestFile]) -> None:
        raise _no_guest()

    async def remove_offline(self, record: MachineRecord, paths: Sequence[str]) -> None:
        raise _no_guest()

    async def read_offline(self, record: MachineRecord, path: str, max_bytes: int) -> bytes:
        raise _no_guest()


class NoGuestChannel:
    """The channel of a machine without a guest."""

    async def connect(self, timeout_s: float | None = None) -> None:
        return

    async def exec(self, request: ExecRequest) -> GuestProgram:
        raise _no_guest()

    async def open_tcp(self, port: int) -> GuestConnection:
        raise _no_guest()

    async def read_file(self, path: str, max_bytes: int) -> bytes:
        raise _no_guest()

    async def write_files(self, files: Sequence[GuestFile]) -> None:
        raise _no_guest()

    async def remove_files(self, paths: Sequence[str]) -> None:
        raise _no_guest()

    def file_browser(self) -> FileBrowser:
        raise _no_guest()

    async def close(self) -> None:
        return


def _no_guest() -> ChannelLost:
    return ChannelLost("A simulated machine has no guest that could answer")


class FaultyProvisioner(BareProvisioner):
    """A bare provisioner, with failures on demand."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults

    async def boot_files(self, kind: MachineKind) -> BootImages:
        await self._faults.reach("boot_files")
        return await super().boot_files(kind)

    async def make_disk(self, folder: MachineFolder, record: MachineRecord) -> None:
        await super().make_disk(folder, record)
        await self._faults.reach("make_disk")

    async def write_config(
        self,
        folder: MachineFolder,
        record: MachineRecord,
        attachment: NetworkAttachment,
        nonce: str,
    ) -> None:
        await super().write_config(folder, record, attachment, nonce)
        await self._faults.reach("write_config")

    async def channel(self, folder: MachineFolder, vmm: RunningVmm) -> NoGuestChannel:
        await self._faults.reach("channel")
        return await super().channel(folder, vmm)


@dataclass
class World:
    """The parts of one host, and what is visible from outside."""

    root: Path
    faults: Faults = field(default_factory=Faults)

    def __post_init__(self) -> None:
        self.driver = SleepingDriver(self.faults)
        self.network = InMemoryNetwork(self.faults)

    def host(self) -> HostContext:
        return HostContext(
            machines_dir=self.root / "machines",
            sockets_dir=self.root / "sockets",
            log_archive=LogArchive(self.root / "logs" / "machines"),
            driver=self.driver,
            network=self.network,
            provisioner=FaultyProvisioner(self.faults),
            memory_keys=MemoryKeys.for_state(self.root, self.root / "keys"),
            stop_grace_s=5,
        )

    def is_clean(self) -> bool:
        """Return True if nothing of any machine is left."""
        processes = self.driver.find_orphans([])
        folders = list((self.root / "machines").iterdir())
        return not processes and not folders and not self.network.attachments


def failing_vmm() -> VmmFailed:
    return VmmFailed("The VMM said no")
