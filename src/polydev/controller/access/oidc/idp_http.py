"""HTTP client for identity providers: limited time and size, no redirects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from polydev.shared.errors import IssuerUnreachable

TIMEOUT_S = 10.0
MAX_BYTES = 256 * 1024
_OAUTH_ERROR_STATUSES = (400, 401)
"""Statuses of OAuth errors (RFC 6749, section 5.2)."""


class BoundedTransport(httpx.AsyncBaseTransport):
    """A transport that limits the size of responses."""

    def __init__(self) -> None:
        self._inner = httpx.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        # A compressed response could expand without limit.
        request.headers["accept-encoding"] = "identity"
        response = await self._inner.handle_async_request(request)
        if response.headers.get("content-encoding", "identity") != "identity":
            await response.aclose()
            raise httpx.ReadError("unexpected compressed response", request=request)
        assert isinstance(response.stream, httpx.AsyncByteStream)  # noqa: S101  (of an async client)
        return httpx.Response(
            response.status_code,
            headers=response.headers,
            stream=_BoundedStream(response.stream, request),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        await self._inner.aclose()


class _BoundedStream(httpx.AsyncByteStream):
    def __init__(self, inner: httpx.AsyncByteStream, request: httpx.Request) -> None:
        self._inner = inner
        self._request = request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for piece in self._inner:
            size += len(piece)
            if size > MAX_BYTES:
                raise httpx.ReadError("response too large", request=self._request)
            yield piece

    async def aclose(self) -> None:
        await self._inner.aclose()


async def fetch_json(url: str, peer: str, bearer: str | None = None) -> dict[str, Any]:
    """Fetch a JSON object; `peer` names the peer in errors. Raises IssuerUnreachable."""
    headers = {} if bearer is None else {"authorization": f"Bearer {bearer}"}
    async with _client(peer) as client:
        response = await client.get(url, headers=headers)
        response.raise_for_status()
        return _json_object(response)


async def post_form(url: str, peer: str, headers: dict[str, str], form: str) -> dict[str, Any]:
    """Post a form to a token endpoint.

    The result can be an OAuth `error`.

    Raises IssuerUnreachable.
    """
    async with _client(peer) as client:
        response = await client.post(url, headers=headers, content=form)
        if response.status_code not in _OAUTH_ERROR_STATUSES:
            response.raise_for_status()
        return _json_object(response)


@asynccontextmanager
async def _client(peer: str) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client with a timeout. Raises IssuerUnreachable."""
    headers = {"accept": "application/json"}
    try:
        async with (
            asyncio.timeout(TIMEOUT_S),
            httpx.AsyncClient(
                transport=BoundedTransport(), timeout=TIMEOUT_S, headers=headers
            ) as client,
        ):
            yield client
    except (TimeoutError, httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise IssuerUnreachable(
            f"{peer} does not answer correctly ({type(error).__name__})",
            hint="Try again; if it persists, check its URL in the settings",
        ) from None


def _json_object(response: httpx.Response) -> dict[str, Any]:
    """Parse a JSON object. Raises ValueError."""
    found = response.json()
    if not isinstance(found, dict):
        raise ValueError("not an object")
    return found
