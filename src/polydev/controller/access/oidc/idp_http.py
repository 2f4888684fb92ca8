"""What is fetched from those who vouch for people: bounded in time and size, never redirected."""

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
"""RFC 6749, section 5.2."""


class BoundedTransport(httpx.AsyncBaseTransport):
    """A transport whose answers are not larger than they should be."""

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


async def fetch_json(url: str, whom: str, bearer: str | None = None) -> dict[str, Any]:
    """A JSON object; `whom` is a word for who has it. Raises IssuerUnreachable."""
    headers = {} if bearer is None else {"authorization": f"Bearer {bearer}"}
    async with _client(whom) as client:
        answer = await client.get(url, headers=headers)
        answer.raise_for_status()
        return _json_object(answer)


async def post_form(url: str, whom: str, headers: dict[str, str], form: str) -> dict[str, Any]:
    """What a token endpoint says, which may be an `error`. Raises IssuerUnreachable."""
    async with _client(whom) as client:
        answer = await client.post(url, headers=headers, content=form)
        if answer.status_code not in _OAUTH_ERROR_STATUSES:
            answer.raise_for_status()
        return _json_object(answer)


@asynccontextmanager
async def _client(whom: str) -> AsyncIterator[httpx.AsyncClient]:
    """What is asked in here ends in time, or in IssuerUnreachable."""
    about = {"accept": "application/json"}
    try:
        async with (
            asyncio.timeout(TIMEOUT_S),
            httpx.AsyncClient(
                transport=BoundedTransport(), timeout=TIMEOUT_S, headers=about
            ) as client,
        ):
            yield client
    except (TimeoutError, httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise IssuerUnreachable(
            f"{whom} does not answer as it should ({type(error).__name__})",
            hint="Try again; if it stays so, its URL in the settings may be wrong",
        ) from None


def _json_object(answer: httpx.Response) -> dict[str, Any]:
    """Raises ValueError. A redirect is no success either, so it never comes here."""
    found = answer.json()
    if not isinstance(found, dict):
        raise ValueError("not an object")
    return found
