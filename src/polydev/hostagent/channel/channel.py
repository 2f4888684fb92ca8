"""SSH connection to one running machine, over a socket that its VMM opens.

One connection carries everything. It is opened on first use and reopened after a loss, so that a
new agent, a restarted sshd or a lost connection need nothing but the next call. Only the machine's
own host key is accepted, and the host's SSH configuration is ignored. The channel does not know
what the programs and files are for.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import asyncssh

from polydev.hostagent.channel import files as small_files
from polydev.hostagent.channel.file_browser import FileBrowser
from polydev.hostagent.channel.limits import ChannelLimits
from polydev.hostagent.channel.port_forward import TcpStream
from polydev.hostagent.channel.remote_process import (
    RUN_ID,
    ProcessBackend,
    ProcessSession,
    RemoteProcess,
    command_line,
    signal_argv,
    terminal_options,
)
from polydev.hostagent.channel.ssh_errors import translate_errors
from polydev.shared.domain import GuestFile
from polydev.shared.errors import ChannelLost, GuestMisbehaved, Invalid
from polydev.shared.host_protocol import STDOUT, ExecRequest

OpenSocket = Callable[[], Awaitable[socket.socket]]
_RETRY_S = 0.2
_CLOSING_LIMIT_S = 1.0
_HIGHEST_PORT = 65535

asyncssh.set_log_level(logging.WARNING)  # lower levels log commands and paths


@dataclass(frozen=True, slots=True)
class CommandResult:
    """Result of a short program; no repr, because the output may be secret."""

    exit_code: int
    stdout: bytes = field(repr=False)
    stderr: bytes = field(repr=False)


class Channel:
    """Programs, files and ports of one machine."""

    def __init__(
        self,
        open_socket: OpenSocket,
        host_public_key: str,
        client_key: str,
        limits: ChannelLimits | None = None,
    ) -> None:
        """Keys are in OpenSSH formats: a public key line, and an unencrypted private key."""
        self._open_socket = open_socket
        self._host_key = asyncssh.import_public_key(host_public_key)
        self._client_key = asyncssh.import_private_key(client_key)
        self._limits = limits or ChannelLimits()
        self._connection: asyncssh.SSHClientConnection | None = None
        self._connecting = asyncio.Lock()
        self._closing_tasks: set[asyncio.Task[None]] = set()

    async def connect(self, timeout_s: float | None = None) -> None:
        """Wait until the machine answers.

        Raises: ChannelLost on a timeout, GuestMisbehaved if something else answers in its place.
        """
        await self._get_connection(timeout_s or self._limits.connect_s)

    async def close(self) -> None:
        """Disconnect; programs that still run on this channel end with the connection."""
        if self._closing_tasks:
            await asyncio.wait(self._closing_tasks, timeout=_CLOSING_LIMIT_S)
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()
            await connection.wait_closed()

    def suspend_keepalive(self) -> None:
        """Stop keepalives before the guest pauses, until `resume_keepalive`.

        Its silence then does not close the connection, and programs run on afterwards.
        """
        if self._connection is not None:
            self._connection.set_keepalive(0)

    def resume_keepalive(self) -> None:
        """Start keepalives again: the guest runs."""
        if self._connection is not None:
            limits = self._limits
            self._connection.set_keepalive(limits.keepalive_s, limits.keepalive_misses)

    async def exec(self, request: ExecRequest) -> RemoteProcess:
        """Start a program as root. The guest can read its environment: never pass a secret.

        Raises: Invalid, ChannelLost.
        """
        run, on_terminal = secrets.token_hex(8), request.pty is not None
        env = {**request.env, RUN_ID: run}
        line = command_line(request.argv, env, request.cwd, on_terminal=on_terminal)
        connection = await self._get_connection(self._limits.connect_s)
        session = ProcessSession(self._limits.stream_window)
        with translate_errors(f"{request.argv[0]} cannot be started"):
            async with asyncio.timeout(self._limits.open_s):
                channel, _ = await connection.create_session(
                    lambda: session,
                    line,
                    encoding=None,
                    window=self._limits.stream_window,
                    **terminal_options(request.pty),
                )
        signal = partial(self._signal, connection, run)
        return RemoteProcess(
            channel, session, ProcessBackend(self._limits, signal, self._track, on_terminal)
        )

    async def run(
        self, argv: Sequence[str], *, max_output: int = 64 * 1024, timeout_s: float = 30
    ) -> CommandResult:
        """Run a short program without input until it ends.

        Raises: GuestMisbehaved if it exceeds the time or output limit, ChannelLost.
        """
        async with await self.exec(ExecRequest(argv=list(argv))) as process:
            await process.write_eof()
            try:
                async with asyncio.timeout(timeout_s):
                    return await _collect(process, max_output, argv[0])
            except TimeoutError:
                raise GuestMisbehaved(f"{argv[0]} did not finish within {timeout_s:g} s") from None

    async def read_file(self, path: str, max_bytes: int) -> bytes:
        """Read a regular file. Raises: NoSuchFile, GuestMisbehaved, ChannelLost, BadPath."""
        small_files.validated_path(path)
        async with self._sftp(f"{path} cannot be read") as sftp:
            return await small_files.read_file(sftp, path, max_bytes)

    async def write_files(self, files: Sequence[GuestFile]) -> None:
        """Write files atomically, and create their parents (0700).

        Raises: BadPath, GuestMisbehaved, ChannelLost.
        """
        for file in files:
            small_files.validated_path(file.path)
        async with self._sftp("Files cannot be written") as sftp:
            for file in files:
                await small_files.write_file(sftp, file)

    async def remove_files(self, paths: Sequence[str]) -> None:
        """Remove files; missing ones are ignored."""
        for path in paths:
            small_files.validated_path(path)
        async with self._sftp("Files cannot be removed") as sftp:
            for path in paths:
                await small_files.remove_file(sftp, path)

    def file_browser(self) -> FileBrowser:
        """Return access to the machine's files for its user."""
        return FileBrowser(self._open_sftp, self._limits.files_s)

    async def open_tcp(self, port: int) -> TcpStream:
        """Connect to a port on the machine's 127.0.0.1. Raises: ChannelLost."""
        if not 0 < port <= _HIGHEST_PORT:
            raise Invalid(f"{port} is not a valid port")
        connection = await self._get_connection(self._limits.connect_s)
        with translate_errors(f"Port {port} in the machine cannot be reached"):
            async with asyncio.timeout(self._limits.open_s):
                reader, writer = await connection.open_connection(
                    "127.0.0.1", port, encoding=None, window=self._limits.stream_window
                )
        return TcpStream(reader, writer, port)

    async def _open_sftp(self) -> asyncssh.SFTPClient:
        connection = await self._get_connection(self._limits.connect_s)
        async with asyncio.timeout(self._limits.open_s):
            return await connection.start_sftp_client()

    @asynccontextmanager
    async def _sftp(self, what: str) -> AsyncIterator[asyncssh.SFTPClient]:
        connection = await self._get_connection(self._limits.connect_s)
        with translate_errors(what):
            async with asyncio.timeout(self._limits.files_s):
                async with connection.start_sftp_client() as sftp:
                    yield sftp

    async def _get_connection(self, timeout_s: float) -> asyncssh.SSHClientConnection:
        with translate_errors("The machine's channel"):
            async with asyncio.timeout(
                timeout_s + _RETRY_S
            ):  # the retries end first, with a reason
                async with self._connecting:
                    if self._connection is None or self._connection.is_closed():
                        self._connection = await self._connect_with_retries(timeout_s)
                    return self._connection

    async def _connect_with_retries(self, timeout_s: float) -> asyncssh.SSHClientConnection:
        """Retry until the time is up: nothing signals when a restarted sshd listens."""
        until = time.monotonic() + timeout_s
        while True:
            try:
                return await self._handshake(max(_RETRY_S, until - time.monotonic()))
            except ChannelLost:
                if time.monotonic() + _RETRY_S >= until:
                    raise
            await asyncio.sleep(_RETRY_S)

    async def _handshake(self, limit_s: float) -> asyncssh.SSHClientConnection:
        with translate_errors("The machine's channel"):
            async with asyncio.timeout(limit_s):
                sock = await self._open_socket()
                try:
                    # The host name is a placeholder; nothing is resolved.
                    options = self._options(limit_s)
                    return await asyncssh.connect("machine", sock=sock, options=options)
                except BaseException:
                    sock.close()
                    raise

    def _options(self, limit_s: float) -> asyncssh.SSHClientConnectionOptions:
        return asyncssh.SSHClientConnectionOptions(
            config=None,
            username="root",
            # A function: with a list, asyncssh would parse the peer's name as an address.
            known_hosts=lambda *_: ([self._host_key], [], []),
            server_host_key_algs=["ssh-ed25519"],
            client_keys=[self._client_key],
            preferred_auth="publickey",
            password_auth=False,
            kbdint_auth=False,
            host_based_auth=False,
            gss_host=None,
            agent_path=None,
            agent_forwarding=False,
            x509_trusted_certs=None,
            compression_algs=["none"],
            kex_algs=["curve25519-sha256"],
            login_timeout=limit_s,
            keepalive_interval=self._limits.keepalive_s,
            keepalive_count_max=self._limits.keepalive_misses,
        )

    async def _signal(self, connection: asyncssh.SSHClientConnection, run: str, name: str) -> None:
        line = command_line(signal_argv(run, name), {}, None, on_terminal=False)
        with translate_errors("A signal cannot be sent"):
            async with asyncio.timeout(self._limits.open_s):
                await connection.run(
                    line,
                    stdin=asyncssh.DEVNULL,
                    stdout=asyncssh.DEVNULL,
                    stderr=asyncssh.DEVNULL,
                )

    def _track(self, ending: asyncio.Task[None]) -> None:
        self._closing_tasks.add(ending)
        ending.add_done_callback(self._closing_tasks.discard)


async def _collect(process: RemoteProcess, max_output: int, name: str) -> CommandResult:
    buffer: dict[int, bytearray] = {}
    while (chunk := await process.read()) is not None:
        stream, data = chunk
        buffer.setdefault(stream, bytearray()).extend(data)
        if sum(map(len, buffer.values())) > max_output:
            raise GuestMisbehaved(f"{name} printed more than {max_output} bytes")
    stdout = bytes(buffer.pop(STDOUT, b""))
    return CommandResult(await process.wait(), stdout, b"".join(map(bytes, buffer.values())))
