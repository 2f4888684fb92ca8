"""The CONNECT proxy: the only way into the fake providers, and to nowhere else.

A tunnel to a provider's host name ends in this process, which serves TLS with the fake CA's
certificate; other hosts are refused with 403, so that tests can see a machine's attempts to reach
them. It knows nothing of the traffic inside a tunnel.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from polydev.testing.fake_providers.call_log import CallLog

HEAD_BYTES = 16 * 1024
HEAD_TIMEOUT_S = 30.0
CHUNK_BYTES = 64 * 1024


class _BadRequest(Exception):
    """The request is not a CONNECT for a host and port."""


@dataclass
class ConnectProxy:
    """Tunnels to `hosts` (port 443) end in a protocol made by `serve`, over `tls`."""

    hosts: Collection[str]
    tls: ssl.SSLContext
    serve: Callable[[], asyncio.BaseProtocol]
    call_log: CallLog
    _tunnels: set[asyncio.Task[None]] = field(default_factory=set)

    async def listen(self, address: str, port: int) -> asyncio.Server:
        return await asyncio.start_server(self._accept, address, port, limit=HEAD_BYTES)

    async def close(self) -> None:
        for tunnel in self._tunnels:
            tunnel.cancel()
        await asyncio.gather(*self._tunnels, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  (start_server runs this in a task)
        self._tunnels.add(task)
        try:
            await self._handle(reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the client disconnected or sent garbage
        finally:
            self._tunnels.discard(task)
            writer.close()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(HEAD_TIMEOUT_S):
            head = await reader.readuntil(b"\r\n\r\n")
        try:
            host, port = _target(head)
        except _BadRequest as bad:
            self.call_log.record("proxy-refused", reason=str(bad))
            await _answer(writer, "405 Method Not Allowed", str(bad))
            return
        if host not in self.hosts or port != 443:
            self.call_log.record("proxy-refused", host=host[:100], port=port)
            offered = ", ".join(sorted(self.hosts))
            reason = f"This proxy does not reach {host[:100]}:{port}; only {offered}."
            await _answer(writer, "403 Forbidden", reason)
            return
        self.call_log.record("tunnel", host=host)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await self._tunnel(reader, writer)

    async def _tunnel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        near, far = socket.socketpair()
        near.setblocking(False)
        far.setblocking(False)
        inner_reader, inner_writer = await asyncio.open_connection(sock=near)
        try:
            serving = asyncio.create_task(self._serve(far))
            async with asyncio.TaskGroup() as both:
                both.create_task(_pump(reader, inner_writer))
                both.create_task(_pump(inner_reader, writer))
            await serving
        except* OSError:
            pass
        finally:
            inner_writer.close()

    async def _serve(self, far: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(self.serve, far, ssl=self.tls)
        except (OSError, ssl.SSLError):
            # Usually a client that does not trust the CA, and reports it itself.
            self.call_log.record("tls-failed")
            far.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(CHUNK_BYTES):
        writer.write(chunk)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


def _target(head: bytes) -> tuple[str, int]:
    """Return host (lower case) and port of a CONNECT request (RFC 9110 9.3.6)."""
    parts = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
    if len(parts) != 3 or parts[0] != "CONNECT":
        raise _BadRequest("Only CONNECT is supported.")
    host, colon, port = parts[1].rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or len(port) > 5:
        raise _BadRequest("CONNECT needs host:port.")
    return host.lower().rstrip("."), int(port)


async def _answer(writer: asyncio.StreamWriter, status: str, reason: str) -> None:
    body = (reason + "\n").encode()
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    writer.write(head.encode() + body)
    await writer.drain()
