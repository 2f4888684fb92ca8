"""The driver contract: operations and guarantees of every VMM driver.

The QEMU, Firecracker and simulated drivers implement it; `tests/contract/` verifies them. A driver
knows the processes, sockets and files of one machine. It knows no address owners, image recipes,
operations or users.

Every driver guarantees:
- `launch` returns once the VMM has answered on its own socket. If it raises, no process, socket or
  file is left behind.
- A VMM outlives the host agent; `adopt` finds it again from the files in the machine's folder.
- `RunningVmm.wait` returns when the process has ended, however it ended, child or not.
- `kill` and `wait` can be called any number of times, in any order.
- The console log is bounded, whatever the guest prints.
- A saved guest stays paused until `resume` or `kill`; `adopt` finds it paused.
- A machine's folder may be renamed while its VMM runs (`relocate`); `adopt` finds it there.
- `restore` returns a paused guest with all its memory. It reads the snapshot once, in order, and
  never writes to it. `adopt` ends a VMM whose restore was interrupted.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol, Self

from polydev.hostagent.settings import HostSettings
from polydev.hostagent.vmm.boot_files import BootFiles


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Properties of a driver that other rooms depend on. The defaults are those of a real VMM."""

    needs_images: bool = True
    """Machines boot from golden images; otherwise the driver provides their disks."""
    host_memory: bool = True
    """Machines take memory and processors of the host."""
    shares_process: bool = False
    """Machines run in the host agent's process and end with it."""
    channel_nic: bool = True
    """The private channel uses a network device of the guest."""
    programs: Mapping[str, str] = field(default_factory=dict)
    """Programs that must be on `PATH`, each with its Debian package."""


@dataclass(frozen=True, slots=True)
class Probe:
    """The result of trying the driver on this host with a real guest."""

    usable: bool
    accelerator: str
    """`kvm`, `tcg`, or `none`."""
    reason: str
    """Explanation for `polydev doctor`."""
    version: str = ""
    """The VMM's version, if the driver depends on it."""


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """Everything that a VMM needs to start one machine."""

    vm_id: str
    folder: Path
    """The machine's own folder: socket links, pid file, console and error logs."""
    kernel: Path
    initramfs: Path
    root_image: Path
    disk: Path
    config_drive: Path
    memory_mib: int
    vcpus: int
    netns: str
    tap: str
    mac: str
    channel_mac: str
    channel_port: int
    """The private channel's port on the loopback of `netns`, if the VMM needs one."""
    uid: int
    """The user and group id that the VMM runs as."""
    ready_marker: str
    """The line (`POLYDEV-READY <nonce>`) that the guest prints once its channel listens."""


@dataclass(frozen=True, slots=True)
class ExitReport:
    """The end of a VMM process."""

    status: int | None
    """None if it was not a child of this agent."""
    output: str
    """The last that it wrote to its error output, in one line."""


class SnapshotSink(Protocol):
    """The destination of a snapshot; it compresses and encrypts (`snapshots/writer.py`)."""

    async def write(self, content: bytes) -> None:
        """Write the next bytes. Raises: DiskFull."""


class SnapshotSource(Protocol):
    """The origin of a snapshot's bytes, each verified before it is returned."""

    async def read(self) -> bytes:
        """Return the next bytes, up to 1 MiB at a time; empty at the end.

        Raises: SnapshotUnusable if they differ from what was written.
        """


class RunningVmm(Protocol):
    """A VMM process with a machine in it."""

    @property
    def pid(self) -> int: ...

    async def wait_ready(self) -> None:
        """Wait for the ready marker on the console; return at once if adopted.

        Raises: VmmFailed with the VMM's last output if it ends first. The caller sets the time
        limit.
        """

    async def open_channel(self) -> socket.socket:
        """Open a connected, non-blocking socket to the guest's sshd. Raises: ChannelLost."""

    async def request_shutdown(self) -> None:
        """Ask the guest to shut down (ACPI power button, if the guest handles it)."""

    async def save(self, sink: SnapshotSink) -> None:
        """Pause the guest and write its memory and devices; it stays paused.

        Raises: VmmFailed, DiskFull. The guest stays paused then, too: the caller resumes it.
        """

    async def pause(self) -> None:
        """Pause the guest until `resume`. Idempotent."""

    def relocate(self, spec: LaunchSpec) -> None:
        """Switch to `spec`, which differs in id and folder.

        The folder was renamed, with everything in it, while this VMM ran.
        """

    async def resume(self) -> None:
        """Resume a paused guest. Idempotent."""

    async def kill(self) -> None:
        """Kill the process; return once it has ended and its sockets are gone."""

    async def wait(self) -> ExitReport:
        """Return when the process has ended."""

    async def detach(self) -> None:
        """Release the VMM without ending it: the host agent stops, the machine runs on."""


class Driver(Protocol):
    """A way to run machines. Entry points of the group `polydev.drivers` name its classes."""

    capabilities: ClassVar[Capabilities]

    @property
    def name(self) -> str: ...

    @classmethod
    def from_settings(cls, settings: HostSettings, boot_files: Callable[[], BootFiles]) -> Self:
        """Create the driver; `boot_files` finds a kernel to probe with. Blocks.

        Raises: BadSettings.
        """

    async def probe(self) -> Probe: ...

    async def launch(self, spec: LaunchSpec) -> RunningVmm:
        """Start a machine. Raises: VmmFailed, MissingTool, DiskFull."""

    async def fingerprint(self, spec: LaunchSpec) -> str:
        """Describe which snapshots fit this machine: VMM, CPU, kernel, devices, sizes.

        A snapshot with another fingerprint is not restored. Raises: MissingTool, VmmFailed.
        """

    async def restore(self, spec: LaunchSpec, source: SnapshotSource) -> RunningVmm:
        """Start a VMM with a saved guest, paused, on the same disk and TAP.

        Its console is read from the start; its ready marker counts as seen. Raises:
        SnapshotUnusable, and everything that `launch` raises; nothing is left behind then.
        """

    async def adopt(self, spec: LaunchSpec) -> RunningVmm | None:
        """Return the machine's VMM if it still runs, else remove its leftovers."""

    def find_orphans(self, folders: Sequence[Path]) -> Sequence[int]:
        """List pids of this driver's VMMs that run in none of `folders`."""
