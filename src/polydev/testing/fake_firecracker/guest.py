"""The fake guest: prints a real guest's serial output, serves SSH over vsock.

It is a simulated machine behind Firecracker's devices: it reads its config drive, stores its files
in memory, pauses with its vCPUs, and shuts down by a reset, as a guest of Firecracker does.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from polydev.hostagent.vmm.contract import LaunchSpec
from polydev.testing.fake_firecracker.memory import GUEST
from polydev.testing.simulated_vmm.machine import SimulatedVmm
from polydev.testing.simulated_vmm.memory import Memory
from polydev.testing.simulated_vmm.simulation import Simulation

_ROOT = GUEST / "root"
_SSH_PORT = 22
_LINE_BYTES = 64
_CHUNK = 64 * 1024
_CONFIG_DRIVE = 2
"""The third drive: /dev/vdc."""


class FakeGuest:
    """A guest. `is_new` boots; otherwise it is restored from memory, paused."""

    def __init__(self, parts: dict[str, Any], *, is_new: bool) -> None:
        self._drives = [drive["path_on_host"] for drive in parts["drives"].values()]
        self._socket = parts.get("vsock", {}).get("uds_path")
        self._is_new = is_new
        self._runs = asyncio.Event()
        if is_new:
            self._runs.set()
        self._vmm: SimulatedVmm | None = None
        self._status: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def state(self) -> str:
        """The state in API terms."""
        return "Running" if self._runs.is_set() else "Paused"

    async def ended(self) -> int:
        return await self._status

    async def start(self) -> None:
        """Start it, running or paused as before."""
        if self._socket:
            server = await asyncio.start_unix_server(self._connected, self._socket)
            self._status.add_done_callback(lambda _: server.close())
        self._spawn(self._live())

    def pause(self) -> None:
        self._runs.clear()

    def resume(self) -> None:
        self._runs.set()

    async def press_ctrl_alt_del(self) -> None:
        if self._vmm is not None:
            await self._vmm.request_shutdown()

    async def _live(self) -> None:
        if not self._is_new:
            self._vmm = self._machine(Memory(_ROOT))
            await self._runs.wait()
        elif len(self._drives) <= _CONFIG_DRIVE:
            _print("POLYDEV-BOOT drives", "POLYDEV-FAILED drives /dev/vda is missing")
            self._status.set_result(0)
            return
        else:
            drive = Path(self._drives[_CONFIG_DRIVE])
            self._vmm = self._machine(Memory.fresh(_ROOT, drive))
            _print("POLYDEV-BOOT services", f"POLYDEV-READY {_nonce(drive)}")
        await self._vmm.wait()
        self._status.set_result(0)

    def _machine(self, memory: Memory) -> SimulatedVmm:
        here = GUEST / "console"
        here.mkdir(exist_ok=True)
        spec = LaunchSpec(
            vm_id="vm-fake", folder=here, kernel=here, initramfs=here, root_image=here,
            disk=here, config_drive=here, memory_mib=0, vcpus=1, netns="", tap="", mac="",
            channel_mac="", channel_port=0, uid=os.getuid(), ready_marker="",
        )  # fmt: skip
        return SimulatedVmm(spec, memory.config(), memory, Simulation())

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Source: docs/vsock.md of Firecracker, "Host-Initiated Connections"."""
        with suppress(OSError, ValueError, asyncio.IncompleteReadError):
            line = await reader.readuntil(b"\n")
            await self._runs.wait()
            if line.strip() == f"CONNECT {_SSH_PORT}".encode() and self._vmm is not None:
                ours = await self._vmm.open_channel()
                inner = await asyncio.open_unix_connection(sock=ours)
                writer.write(b"OK 1073741824\n")
                await asyncio.gather(self._carry(reader, inner[1]), self._carry(inner[0], writer))
        writer.close()

    async def _carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        """Copy data; it stalls while the guest is paused."""
        with suppress(OSError):
            while content := await source.read(_CHUNK):
                await self._runs.wait()
                sink.write(content)
                await sink.drain()
        sink.close()

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not self._status.done() and (task.cancelled() or task.exception()):
            _print(f"the fake guest failed: {task.exception() if not task.cancelled() else ''}")
            self._status.set_result(1)


def _nonce(drive: Path) -> str:
    """Read the ready nonce from the config drive (docs/machines.md, "Config drive")."""
    with tarfile.open(drive) as archive:
        file = archive.extractfile("machine.env")
        pairs = shlex.split(file.read().decode()) if file else []
    return dict(pair.split("=", 1) for pair in pairs)["POLYDEV_READY_NONCE"]


def ignore_chown() -> None:
    """Make chown a no-op in this process.

    In the guest the SFTP server runs as root; asyncssh's would fail without the permission.
    """
    setattr(os, "chown", _skip)  # noqa: B010 - for this process alone


def _skip(*_: object, **__: object) -> None:
    return


def _print(*lines: str) -> None:
    """Print on the serial line, which is standard output and drops unread data."""
    for line in lines:
        with suppress(OSError):
            os.write(1, f"{line}\r\n".encode())
