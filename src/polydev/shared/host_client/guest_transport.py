"""HTTP transport to a port inside a machine, through the host agent.

With it, an ordinary `httpx.AsyncClient` needs no route to the guest. The guest is hostile: answers
are bounded and never decompressed.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import anyio
import httpcore
import httpx

from polydev.shared.errors import ChannelLost, GuestMisbehaved
from polydev.shared.host_client.streams import GuestStream

if find_spec("sniffio") is None:
    # httpcore tries to import it for each request. Without it, Python would search every folder of
    # its path each time, which is a third of the cost of a request.
    sys.modules["sniffio"] = None  # type: ignore[assignment]

MAX_BODY_BYTES = 8 * 1024 * 1024

Dial = Callable[[int], Awaitable[GuestStream]]


class GuestTransport(httpx.AsyncBaseTransport):
    """Transport over the streams that `dial(port)` opens.

    Raises: ChannelLost, GuestMisbehaved, and what `dial` raises.
    """

    def __init__(self, dial: Dial, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self._max_body_bytes = max_body_bytes
        self._pool = httpcore.AsyncConnectionPool(
            network_backend=_Backend(dial), max_keepalive_connections=0
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if not isinstance(request.stream, httpx.AsyncByteStream):
            raise TypeError("only asynchronous request bodies")
        with _translated():
            answer = await self._pool.handle_async_request(
                httpcore.Request(
                    method=request.method,
                    url=httpcore.URL(
                        scheme=request.url.raw_scheme,
                        host=request.url.raw_host,
                        port=request.url.port,
                        target=request.url.raw_path,
                    ),
                    headers=request.headers.raw,
                    content=request.stream,
                    extensions=request.extensions,
                )
            )
        body = _BoundedBody(answer, self._max_body_bytes)
        if any(name.lower() == b"content-encoding" for name, _ in answer.headers):
            await body.aclose()
            raise GuestMisbehaved("A service in a machine sent a compressed body")
        return httpx.Response(
            status_code=answer.status,
            headers=answer.headers,
            stream=body,
            extensions=answer.extensions,
        )

    async def aclose(self) -> None:
        await self._pool.aclose()


class _BoundedBody(httpx.AsyncByteStream):
    def __init__(self, answer: httpcore.Response, limit: int) -> None:
        self._answer = answer
        self._limit = limit

    async def __aiter__(self) -> AsyncIterator[bytes]:
        stream = self._answer.stream
        if not isinstance(stream, AsyncIterable):
            raise TypeError("the pool answered synchronously")
        total = 0
        with _translated():
            async for chunk in stream:
                total += len(chunk)
                if total > self._limit:
                    raise GuestMisbehaved(
                        f"A service in a machine sent more than {self._limit} bytes"
                    )
                yield chunk

    async def aclose(self) -> None:
        with _translated():
            await self._answer.aclose()


class _Backend(httpcore.AsyncNetworkBackend):
    def __init__(self, dial: Dial) -> None:
        self._dial = dial

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        with _limited(httpcore.ConnectTimeout, timeout):
            return _Stream(await self._dial(port))
        raise AssertionError("unreachable")

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.AsyncNetworkStream:
        raise NotImplementedError("machines are reached by port")

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)


class _Stream(httpcore.AsyncNetworkStream):
    def __init__(self, stream: GuestStream) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _limited(httpcore.ReadTimeout, timeout):
            return await self._stream.read(max_bytes)
        raise AssertionError("unreachable")

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        with _limited(httpcore.WriteTimeout, timeout):
            await self._stream.write(buffer)

    async def aclose(self) -> None:
        await self._stream.aclose()


@contextmanager
def _limited(kind: type[Exception], timeout_s: float | None) -> Iterator[None]:
    try:
        with anyio.fail_after(timeout_s):
            yield
    except TimeoutError:
        raise kind from None


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except httpcore.TimeoutException:
        raise ChannelLost("A service in a machine did not answer in time") from None
    except (httpcore.NetworkError, httpcore.ProtocolError) as error:
        raise ChannelLost(
            f"A service in a machine interrupted its answer ({type(error).__name__})"
        ) from None
