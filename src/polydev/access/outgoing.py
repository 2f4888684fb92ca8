"""What is fetched from those who vouch for people: bounded in time and size, never redirected."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from polydev.errors import IssuerUnreachable

LIMIT_S = 10.0
MAX_BYTES = 256 * 1024


class Bounded(httpx.AsyncBaseTransport):
    """A transport whose answers are not larger than they should be. Give it to any client."""

    def __init__(self) -> None:
        self._inner = httpx.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        request.headers["accept-encoding"] = "identity"  # what is small stays small
        answer = await self._inner.handle_async_request(request)
        if answer.headers.get("content-encoding", "identity") != "identity":
            await answer.aclose()
            raise httpx.ReadError("a compressed answer that nobody asked for", request=request)
        assert isinstance(answer.stream, httpx.AsyncByteStream)  # noqa: S101  (of an async client)
        return httpx.Response(
            answer.status_code,
            headers=answer.headers,
            stream=_BoundedStream(answer.stream, request),
            extensions=answer.extensions,
        )

    async def aclose(self) -> None:
        await self._inner.aclose()


class _BoundedStream(httpx.AsyncByteStream):
    def __init__(self, inner: httpx.AsyncByteStream, request: httpx.Request) -> None:
        self._inner = inner
        self._request = request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        seen = 0
        async for piece in self._inner:
            seen += len(piece)
            if seen > MAX_BYTES:
                raise httpx.ReadError("an answer that is too large", request=self._request)
            yield piece

    async def aclose(self) -> None:
        await self._inner.aclose()


@asynccontextmanager
async def asking(whom: str) -> AsyncIterator[None]:
    """What is asked in here ends in time, or in IssuerUnreachable; `whom` is a word for them."""
    try:
        async with asyncio.timeout(LIMIT_S):
            yield
    except (TimeoutError, httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise IssuerUnreachable(
            f"{whom} does not answer as it should ({type(error).__name__})",
            hint="Try again; if it stays so, its URL in the settings may be wrong",
        ) from None


async def fetch_json(url: str, whom: str, bearer: str | None = None) -> dict[str, Any]:
    """A JSON object. Raises IssuerUnreachable."""
    headers = {"accept": "application/json"}
    if bearer is not None:
        headers["authorization"] = f"Bearer {bearer}"
    async with asking(whom), httpx.AsyncClient(transport=Bounded(), timeout=LIMIT_S) as client:
        answer = await client.get(url, headers=headers)
        if answer.status_code != httpx.codes.OK:
            raise httpx.HTTPStatusError("not OK", request=answer.request, response=answer)
        found = answer.json()
        if not isinstance(found, dict):
            raise ValueError("not an object")
    return found
