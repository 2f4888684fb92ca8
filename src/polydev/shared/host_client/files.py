"""File browser of one running machine, over its host agent.

Paths are bytes, as in the machine's kernel. Transfers are streamed with backpressure.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import quote_from_bytes

import httpx

from polydev.shared.errors import ChannelLost
from polydev.shared.host_client.error_translation import (
    body_to_error,
    parse_answer,
    translate_transport_errors,
)
from polydev.shared.host_protocol import FolderView, Uploaded

_PIECE_LIMIT_S = 90.0
"""The host agent has a shorter limit and reports the reason."""


@dataclass(frozen=True, slots=True)
class Download:
    """Streamed file."""

    size: int
    pieces: AsyncIterator[bytes]
    """`size` bytes in total. Raises ChannelLost if the stream ends early."""


class MachineFiles:
    """File operations. Each raises the host agent's error, or HostUnreachable."""

    def __init__(self, client: httpx.AsyncClient, vm_id: str) -> None:
        self._client = client
        self._base = f"/machines/{vm_id}"

    async def folder(self, path: bytes) -> FolderView:
        """List a folder. Raises BadPath, NoSuchFile, FileRefused."""
        body = await self._send("GET", "folder", {"path": path})
        return parse_answer(FolderView, body)

    async def make_folder(self, path: bytes) -> None:
        """Create a folder. Raises AlreadyExists, BadPath, NoSuchFile, FileRefused."""
        await self._send("PUT", "folder", {"path": path})

    async def move(self, path: bytes, to: bytes) -> None:
        """Move or rename. Raises AlreadyExists, BadPath, NoSuchFile, FileRefused."""
        await self._send("POST", "move", {"path": path, "to": to})

    async def remove(self, path: bytes, *, with_content: bool) -> None:
        """Delete a file or folder. Raises BadPath, NoSuchFile, FileRefused."""
        request = self._request("DELETE", "content", {"path": path}, with_content=with_content)
        await self._answered(request)

    @asynccontextmanager
    async def download(self, path: bytes, max_bytes: int) -> AsyncIterator[Download]:
        """Open a file for streaming. Raises BadPath, NoSuchFile, FileRefused."""
        request = self._request("GET", "content", {"path": path}, max_bytes=max_bytes)
        with translate_transport_errors(f"GET {self._base}/content"):
            answer = await self._client.send(request, stream=True)
        try:
            if answer.is_error:
                raise body_to_error(answer.status_code, await answer.aread())
            size = int(answer.headers["content-length"])
            yield Download(size, _pieces(answer))
        finally:
            await answer.aclose()

    async def upload(
        self, path: bytes, pieces: AsyncIterator[bytes], max_bytes: int, *, replace: bool
    ) -> int:
        """Upload a file and return its size.

        Raises: AlreadyExists, TooLarge, DiskFull, BadPath, NoSuchFile.
        """
        request = self._request(
            "PUT", "content", {"path": path}, content=pieces, max_bytes=max_bytes, replace=replace
        )
        return parse_answer(Uploaded, await self._answered(request)).size

    async def _send(self, method: str, what: str, paths: dict[str, bytes]) -> bytes:
        return await self._answered(self._request(method, what, paths))

    def _request(
        self,
        method: str,
        what: str,
        paths: dict[str, bytes],
        content: AsyncIterator[bytes] | None = None,
        **options: int,
    ) -> httpx.Request:
        quoted: dict[str, str | int] = {
            name: quote_from_bytes(path) for name, path in paths.items()
        }
        return self._client.build_request(
            method,
            f"{self._base}/{what}",
            params={**quoted, **options},
            content=content,
            timeout=_PIECE_LIMIT_S,
        )

    async def _answered(self, request: httpx.Request) -> bytes:
        with translate_transport_errors(f"{request.method} {request.url.path}"):
            answer = await self._client.send(request)
        if answer.is_error:
            raise body_to_error(answer.status_code, answer.content)
        return answer.content


async def _pieces(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for piece in answer.aiter_raw():
            yield piece
    except httpx.TransportError:
        raise ChannelLost("The download from the machine was interrupted") from None
