"""One simulated machine: an SSH server in this process in place of a guest's sshd.

The rest of the agent sees a `RunningVmm`. Its channel is one end of a socketpair, its filesystem a
private folder. It has no process of its own, so that its pid is the host agent's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable

import asyncssh

from polydev.hostagent.channel import Channel
from polydev.hostagent.vmm.contract import ExitReport, LaunchSpec, SnapshotSink
from polydev.shared.errors import ChannelLost, VmmFailed
from polydev.testing.simulated_vmm.browser.screen import SCREEN_PORT, Screen
from polydev.testing.simulated_vmm.browser.service import SERVICE_PORT, BrowserService
from polydev.testing.simulated_vmm.config_drive import GuestConfig
from polydev.testing.simulated_vmm.direct_channel import DirectChannel, Ports
from polydev.testing.simulated_vmm.memory import Memory
from polydev.testing.simulated_vmm.programs.programs import Programs
from polydev.testing.simulated_vmm.simulation import Simulation

_CHUNK = 64 * 1024
_BOOT_LINES = ("POLYDEV-BOOT simulated",)

Handler = Callable[[asyncssh.SSHReader[bytes], asyncssh.SSHWriter[bytes]], Awaitable[None]]


class SimulatedVmm:
    """A running machine."""

    def __init__(
        self,
        spec: LaunchSpec,
        config: GuestConfig,
        memory: Memory,
        simulation: Simulation,
        *,
        is_restored: bool = False,
    ) -> None:
        """A restored machine has booted already, and is paused."""
        self._spec = spec
        self._memory = memory
        root = memory.root
        self._simulation = simulation
        self._ended = asyncio.Event()
        self._status = 0
        self._connections: set[asyncssh.SSHServerConnection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._programs = Programs(root, simulation, power_off=self._end, renew=self._renew)
        self._service = BrowserService(config.token, simulation) if config.token else None
        self._screen = Screen(root, self._service.complete_login) if self._service else None
        self._config = config
        self._runs = asyncio.Event()
        if not is_restored:
            self._runs.set()
        self._ready = asyncio.create_task(self._runs.wait() if is_restored else self._boot())

    @property
    def pid(self) -> int:
        return os.getpid()

    async def wait_ready(self) -> None:
        ended = asyncio.create_task(self._ended.wait())
        await asyncio.wait({ended, self._ready}, return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        if self._ended.is_set():
            raise VmmFailed(f"{self._spec.vm_id} ended before it was ready")

    async def open_channel(self) -> socket.socket:
        if self._ended.is_set():
            raise ChannelLost(f"{self._spec.vm_id} is not running")
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        self._start(self._serve(theirs))
        return ours

    @property
    def has_direct_channel(self) -> bool:
        """True if it is reached without SSH, so that keys are not checked."""
        return self._simulation.channel == "direct"

    def direct_channel(self, over_ssh: Channel) -> DirectChannel | None:
        """Return a channel without SSH, if the simulation uses one."""
        if not self.has_direct_channel:
            return None
        return DirectChannel(
            lambda: self._memory.root, self._programs, self._ports(), self._ended, over_ssh
        )

    async def request_shutdown(self) -> None:
        self._end()

    async def save(self, sink: SnapshotSink) -> None:
        """Pause and write its memory; connections wait until `resume`."""
        if self._ended.is_set():
            raise VmmFailed(f"{self._spec.vm_id} has ended")
        self._runs.clear()
        saved = await asyncio.to_thread(self._memory.saved)
        for start in range(0, len(saved), _CHUNK):
            await sink.write(saved[start : start + _CHUNK])

    async def pause(self) -> None:
        """Pause: new connections wait until `resume`."""
        if self._ended.is_set():
            raise VmmFailed(f"{self._spec.vm_id} has ended")
        self._runs.clear()

    def relocate(self, spec: LaunchSpec) -> None:
        self._spec = spec
        self._memory = Memory(spec.folder / self._memory.root.name)
        self._programs.move(self._memory.root)
        if self._screen is not None:
            self._screen.move(self._memory.root)

    async def resume(self) -> None:
        if self._ended.is_set():
            raise VmmFailed(f"{self._spec.vm_id} has ended")
        self._runs.set()

    async def kill(self) -> None:
        if not self._ended.is_set():
            self._status = -9
            self._end()
        await self._settled()

    async def wait(self) -> ExitReport:
        await self._ended.wait()
        return ExitReport(self._status, "")

    async def detach(self) -> None:
        """End it: it cannot run without this process."""
        self._end()
        await self._settled()

    async def _boot(self) -> bool:
        await asyncio.sleep(self._simulation.boot_s)
        if not self._simulation.becomes_ready:
            await self._ended.wait()
        lines = [*_BOOT_LINES, self._spec.ready_marker]
        console = self._spec.folder / "console.log"
        console.write_text("".join(f"{line}\n" for line in lines))
        (self._spec.folder / "error.log").touch()
        return True

    async def _serve(self, sock: socket.socket) -> None:
        try:
            await self._runs.wait()
        except asyncio.CancelledError:
            sock.close()
            raise
        with contextlib.suppress(asyncssh.Error, OSError, TimeoutError):
            options = self._server_options(self._config)
            connection = await asyncssh.run_server(sock, options=options)
            self._connections.add(connection)
            try:
                await connection.wait_closed()
            finally:
                self._connections.discard(connection)

    def _server_options(self, config: GuestConfig) -> asyncssh.SSHServerConnectionOptions:
        return asyncssh.SSHServerConnectionOptions(
            server_factory=lambda: _Server(self._connect_to),
            server_host_keys=[asyncssh.import_private_key(config.host_key)],
            authorized_client_keys=asyncssh.import_authorized_keys(config.authorized_keys),
            process_factory=self._programs.run,
            sftp_factory=lambda chan: asyncssh.SFTPServer(
                chan, chroot=os.fsencode(self._memory.root)
            ),
            encoding=None,
            line_editor=False,
            agent_forwarding=False,
            compression_algs=["none"],
        )

    def _renew(self, config_drive: bytes) -> None:
        """Apply another config drive, as `renew` does in a real clone."""
        self._config = config = self._memory.renewed(config_drive)
        if self._service is not None and config.token:
            self._service.token = config.token

    def _ports(self) -> Ports:
        """Return the machine's listening ports."""
        ports: Ports = {}
        if self._service is not None and self._screen is not None:
            ports[SERVICE_PORT] = self._service.open_connection
            ports[SCREEN_PORT] = self._screen.open_connection
        return ports

    def _connect_to(self, host: str, port: int) -> Handler:
        open_connection = self._ports().get(port) if host == "127.0.0.1" else None
        if open_connection is None:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, "Connection refused")

        async def carry(
            reader: asyncssh.SSHReader[bytes], writer: asyncssh.SSHWriter[bytes]
        ) -> None:
            inner_reader, inner_writer = await open_connection()
            await asyncio.gather(_pump(reader, inner_writer), _pump(inner_reader, writer))

        return carry

    def _end(self) -> None:
        self._ended.set()
        self._ready.cancel()
        for connection in tuple(self._connections):
            connection.abort()
        for task in tuple(self._tasks):
            task.cancel()
        if self._service is not None:
            self._start(self._service.close())
        if self._screen is not None:
            self._start(self._screen.close())

    async def _settled(self) -> None:
        await asyncio.gather(*self._tasks, self._ready, return_exceptions=True)

    def _start(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Server(asyncssh.SSHServer):
    """Authentication and port forwarding."""

    def __init__(self, connect_to: Callable[[str, int], Handler]) -> None:
        self._connect_to = connect_to

    def begin_auth(self, username: str) -> bool:
        return True

    def connection_requested(
        self, dest_host: str, dest_port: int, orig_host: str, orig_port: int
    ) -> Handler:
        return self._connect_to(dest_host, dest_port)


async def _pump(
    source: asyncio.StreamReader | asyncssh.SSHReader[bytes],
    sink: asyncio.StreamWriter | asyncssh.SSHWriter[bytes],
) -> None:
    with contextlib.suppress(OSError, asyncssh.Error):
        while data := await source.read(_CHUNK):
            sink.write(data)
            await sink.drain()
        sink.write_eof()
