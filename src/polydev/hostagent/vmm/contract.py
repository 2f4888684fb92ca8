"""The driver contract: what every VMM can do, and what it promises.

`machines.py` calls it; `qemu/`, `firecracker/` and `simulated/` obey it; `tests/contract/` proves
that they do.
A driver knows processes, sockets and files of one machine. It must not know addresses' owners,
images' recipes, operations or people.

Promises of every driver:
- `launch` returns only when the VMM itself answered on its own socket, and leaves no process,
  socket or file behind when it raises.
- A VMM outlives the host agent; `adopt` finds it again from what is in the machine's folder.
- `RunningVmm.wait` ends when the process has ended, whoever ended it, child or not.
- `kill` and `wait` may be called any number of times, in any order.
- The console log is bounded, whatever the guest prints.
- A guest that was saved stands still until `resume` or `kill`; `adopt` finds it standing still.
- A machine's folder may be renamed while its VMM runs (`relocate`); `adopt` finds it there.
- `restore` returns a guest that stands still and remembers everything; it reads the snapshot once,
  in order, and never writes to it. One that was cut short is ended by `adopt`.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Probe:
    """What a driver can do on this host: found by running a guest, not by looking at files."""

    usable: bool
    accelerator: str
    """`kvm`, `tcg`, or `none`."""
    reason: str
    """Why, in words for `polydev doctor`."""
    version: str = ""
    """Of the VMM, where the driver depends on it."""


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """Everything a VMM needs to start one machine."""

    vm_id: str
    folder: Path
    """The machine's own folder: sockets' links, pid file, console and error logs live here."""
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
    """On the loopback of `netns`: the private channel's port, if the VMM needs one."""
    uid: int
    """The user (and group) id the VMM runs as."""
    ready_marker: str
    """The line (`POLYDEV-READY <nonce>`) that the guest prints when its channel listens."""


@dataclass(frozen=True, slots=True)
class ExitReport:
    """The end of a VMM process."""

    status: int | None
    """None if it was not a child of this agent."""
    output: str
    """The last that it wrote to its error output, in one line."""


class SnapshotSink(Protocol):
    """Where a snapshot's bytes go: compressed and sealed behind it (`snapshots.py`)."""

    async def write(self, content: bytes) -> None:
        """Take the next bytes. Raises: DiskFull."""


class SnapshotSource(Protocol):
    """Where a snapshot's bytes come from, each checked before it is handed out."""

    async def read(self) -> bytes:
        """The next bytes, in pieces of any size up to 1 MiB; empty at the end.

        Raises: SnapshotUnusable when they are not what was written.
        """


class RunningVmm(Protocol):
    """A VMM process with a machine in it."""

    @property
    def pid(self) -> int: ...

    async def wait_ready(self) -> None:
        """Return when the guest printed its ready marker (for a VMM that was adopted: at once).

        Raises: VmmFailed with the VMM's last words if it ends before. The caller sets the limit.
        """

    async def open_channel(self) -> socket.socket:
        """A fresh, connected, non-blocking socket to the guest's sshd. Raises ChannelLost."""

    async def request_shutdown(self) -> None:
        """Ask the guest to end (ACPI power button, where the guest listens to it)."""

    async def save(self, sink: SnapshotSink) -> None:
        """Stop the guest's processors and write its memory and devices; it stands still after.

        Raises: VmmFailed, DiskFull; the guest stands still then, too: the caller lets it go on.
        """

    async def pause(self) -> None:
        """Stop the guest's processors, until `resume`; nothing happens to one that stands still."""

    def relocate(self, spec: LaunchSpec) -> None:
        """It is the machine of `spec` from now on, which differs in its id and its folder: that
        was renamed, with everything in it, while this VMM ran."""

    async def resume(self) -> None:
        """Let a guest that stands still go on; nothing happens to one that runs."""

    async def kill(self) -> None:
        """End the process now, and return when it has ended and its sockets are gone."""

    async def wait(self) -> ExitReport:
        """Return when the process has ended."""

    async def detach(self) -> None:
        """Let go of it without ending it: the host agent stops, the machine goes on."""


class Driver(Protocol):
    """A way to run machines."""

    @property
    def name(self) -> str: ...

    async def probe(self) -> Probe: ...

    async def launch(self, spec: LaunchSpec) -> RunningVmm:
        """Start a machine. Raises VmmFailed, MissingTool, DiskFull."""

    async def fingerprint(self, spec: LaunchSpec) -> str:
        """What a snapshot of such a machine fits: VMM and version, processor, kernel, devices,
        sizes. One with another fingerprint is not restored. Raises: MissingTool, VmmFailed."""

    async def restore(self, spec: LaunchSpec, source: SnapshotSource) -> RunningVmm:
        """A VMM with a guest that was saved, standing still, on the same disk, TAP and channel
        port. Its console is read from the start, its ready marker is taken as seen.

        Raises: SnapshotUnusable, and what `launch` raises; nothing is left behind then.
        """

    async def adopt(self, spec: LaunchSpec) -> RunningVmm | None:
        """The machine's VMM if it still runs, else None (and its leftovers are removed)."""

    def find_orphans(self, folders: Sequence[Path]) -> Sequence[int]:
        """Pids of VMMs of this driver whose folder is none of `folders`: nobody's machines."""
