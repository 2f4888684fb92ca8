"""The private way into one running machine: SSH over a socket that its VMM opens.

`machine.py` holds one for each running machine. One connection carries everything, is made when it
is first needed and made anew after it was cut, so a new agent, a restarted sshd or a lost
connection need nothing but the next call. Only the machine's own host key is accepted, and nothing
of the host's SSH set-up is read. It must not know what the programs and files are for.
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

from polydev.hostagent.channel import files as whole_files
from polydev.hostagent.channel.file_browser import GuestFiles
from polydev.hostagent.channel.limits import ChannelLimits
from polydev.hostagent.channel.port_forward import TcpStream
from polydev.hostagent.channel.remote_process import (
    RUN,
    Backing,
    Process,
    Session,
    command_line,
    signal_argv,
    terminal_options,
)
from polydev.hostagent.channel.ssh_errors import translated
from polydev.shared.domain import GuestFile
from polydev.shared.errors import ChannelLost, GuestMisbehaved, Invalid
from polydev.shared.host_protocol import STDOUT, ExecRequest

OpenSocket = Callable[[], Awaitable[socket.socket]]
_RETRY_S = 0.2
_ENDINGS_S = 1.0
_HIGHEST_PORT = 65535

asyncssh.set_log_level(logging.WARNING)  # it tells commands and paths at lower levels


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a short program did. Its output may be secret, so it has no repr."""

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
        """Keys in OpenSSH's formats: a line with a public key, and a private key, unencrypted."""
        self._open_socket = open_socket
        self._host_key = asyncssh.import_public_key(host_public_key)
        self._client_key = asyncssh.import_private_key(client_key)
        self._limits = limits or ChannelLimits()
        self._connection: asyncssh.SSHClientConnection | None = None
        self._connecting = asyncio.Lock()
        self._endings: set[asyncio.Task[None]] = set()

    async def connect(self, timeout_s: float | None = None) -> None:
        """Return when the machine answers. Raises ChannelLost if it does not in time,
        GuestMisbehaved if something else answers in its place."""
        await self._connected(timeout_s or self._limits.connect_s)

    async def close(self) -> None:
        """Let go of the machine: what still runs for this channel ends with the connection."""
        if self._endings:
            await asyncio.wait(self._endings, timeout=_ENDINGS_S)
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()
            await connection.wait_closed()

    def rest(self) -> None:
        """The guest is about to stand still: until `wake`, its silence does not cut the connection,
        and what runs for this channel goes on afterwards."""
        if self._connection is not None:
            self._connection.set_keepalive(0)

    def wake(self) -> None:
        """The guest goes on."""
        if self._connection is not None:
            limits = self._limits
            self._connection.set_keepalive(limits.keepalive_s, limits.keepalive_misses)

    async def exec(self, request: ExecRequest) -> Process:
        """Start a program as root. Its environment is readable by the guest: never a secret.

        Raises: Invalid, ChannelLost.
        """
        run, on_terminal = secrets.token_hex(8), request.pty is not None
        env = {**request.env, RUN: run}
        line = command_line(request.argv, env, request.cwd, on_terminal=on_terminal)
        connection = await self._connected(self._limits.connect_s)
        session = Session(self._limits.stream_window)
        with translated(f"{request.argv[0]} cannot be started"):
            async with asyncio.timeout(self._limits.open_s):
                channel, _ = await connection.create_session(
                    lambda: session,
                    line,
                    encoding=None,
                    window=self._limits.stream_window,
                    **terminal_options(request.pty),
                )
        signal = partial(self._signal, connection, run)
        return Process(channel, session, Backing(self._limits, signal, self._keep, on_terminal))

    async def run(
        self, argv: Sequence[str], *, max_output: int = 64 * 1024, timeout_s: float = 30
    ) -> Outcome:
        """Run a short program without input to its end.

        Raises: GuestMisbehaved if it takes or prints more than allowed, ChannelLost.
        """
        async with await self.exec(ExecRequest(argv=list(argv))) as process:
            await process.write_eof()
            try:
                async with asyncio.timeout(timeout_s):
                    return await _collected(process, max_output, argv[0])
            except TimeoutError:
                raise GuestMisbehaved(f"{argv[0]} did not end within {timeout_s:g} s") from None

    async def read_file(self, path: str, max_bytes: int) -> bytes:
        """A regular file's content. Raises NoSuchFile, GuestMisbehaved, ChannelLost, BadPath."""
        whole_files.checked_path(path)
        async with self._sftp(f"{path} cannot be read") as sftp:
            return await whole_files.read_file(sftp, path, max_bytes)

    async def write_files(self, files: Sequence[GuestFile]) -> None:
        """Put files in their places, each whole or not at all, parents (0700) included.

        Raises: BadPath, GuestMisbehaved, ChannelLost.
        """
        for file in files:
            whole_files.checked_path(file.path)
        async with self._sftp("Files cannot be written") as sftp:
            for file in files:
                await whole_files.write_file(sftp, file)

    async def remove_files(self, paths: Sequence[str]) -> None:
        """Remove files; those that are not there are passed over."""
        for path in paths:
            whole_files.checked_path(path)
        async with self._sftp("Files cannot be removed") as sftp:
            for path in paths:
                await whole_files.remove_file(sftp, path)

    def guest_files(self) -> GuestFiles:
        """What people do with the machine's files."""
        return GuestFiles(self._open_sftp, self._limits.files_s)

    async def open_tcp(self, port: int) -> TcpStream:
        """Connect to a port on the machine's 127.0.0.1. Raises ChannelLost if nobody listens."""
        if not 0 < port <= _HIGHEST_PORT:
            raise Invalid(f"{port} is no port")
        connection = await self._connected(self._limits.connect_s)
        with translated(f"Port {port} in the machine cannot be reached"):
            async with asyncio.timeout(self._limits.open_s):
                reader, writer = await connection.open_connection(
                    "127.0.0.1", port, encoding=None, window=self._limits.stream_window
                )
        return TcpStream(reader, writer, port)

    async def _open_sftp(self) -> asyncssh.SFTPClient:
        connection = await self._connected(self._limits.connect_s)
        async with asyncio.timeout(self._limits.open_s):
            return await connection.start_sftp_client()

    @asynccontextmanager
    async def _sftp(self, what: str) -> AsyncIterator[asyncssh.SFTPClient]:
        connection = await self._connected(self._limits.connect_s)
        with translated(what):
            async with asyncio.timeout(self._limits.files_s):
                async with connection.start_sftp_client() as sftp:
                    yield sftp

    async def _connected(self, timeout_s: float) -> asyncssh.SSHClientConnection:
        with translated("The machine's channel"):
            async with asyncio.timeout(timeout_s + _RETRY_S):  # the trying ends first, and says why
                async with self._connecting:
                    if self._connection is None or self._connection.is_closed():
                        self._connection = await self._retried(timeout_s)
                    return self._connection

    async def _retried(self, timeout_s: float) -> asyncssh.SSHClientConnection:
        """Try until the time is up: an sshd that starts anew tells nobody when it listens."""
        until = time.monotonic() + timeout_s
        while True:
            try:
                return await self._handshake(max(_RETRY_S, until - time.monotonic()))
            except ChannelLost:
                if time.monotonic() + _RETRY_S >= until:
                    raise
            await asyncio.sleep(_RETRY_S)

    async def _handshake(self, limit_s: float) -> asyncssh.SSHClientConnection:
        with translated("The machine's channel"):
            async with asyncio.timeout(limit_s):
                sock = await self._open_socket()
                try:
                    # The name is for a socket without an address; nothing is looked up.
                    options = self._options(limit_s)
                    return await asyncssh.connect("machine", sock=sock, options=options)
                except BaseException:
                    sock.close()
                    raise

    def _options(self, limit_s: float) -> asyncssh.SSHClientConnectionOptions:
        return asyncssh.SSHClientConnectionOptions(
            config=None,
            username="root",
            # A function, since asyncssh would parse the peer's name as an address otherwise.
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
        with translated("A signal cannot be sent"):
            async with asyncio.timeout(self._limits.open_s):
                await connection.run(
                    line,
                    stdin=asyncssh.DEVNULL,
                    stdout=asyncssh.DEVNULL,
                    stderr=asyncssh.DEVNULL,
                )

    def _keep(self, ending: asyncio.Task[None]) -> None:
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)


async def _collected(process: Process, max_output: int, name: str) -> Outcome:
    kept: dict[int, bytearray] = {}
    while (chunk := await process.read()) is not None:
        stream, data = chunk
        kept.setdefault(stream, bytearray()).extend(data)
        if sum(map(len, kept.values())) > max_output:
            raise GuestMisbehaved(f"{name} printed more than {max_output} bytes")
    stdout = bytes(kept.pop(STDOUT, b""))
    return Outcome(await process.wait(), stdout, b"".join(map(bytes, kept.values())))
