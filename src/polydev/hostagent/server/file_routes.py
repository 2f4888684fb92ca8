"""The routes of the host agent's HTTP face for people's files in running machines.

`server.py` adds them to its application. A path comes percent-encoded inside its query parameter,
since it is bytes: the names in a machine need not be text.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated, Protocol
from urllib.parse import quote_from_bytes, unquote_to_bytes

from fastapi import APIRouter, Query, Request
from fastapi import Path as InPath
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect

from polydev.hostagent.channel.file_browser import FileBrowser
from polydev.hostagent.channel.sftp_dirs import Entry
from polydev.hostagent.channel.transfers import Download
from polydev.shared.errors import ChannelLost
from polydev.shared.host_protocol import VM_ID_PATTERN, FileEntry, FolderView, Uploaded

VmId = Annotated[str, InPath(pattern=VM_ID_PATTERN)]
Place = Annotated[str, Query(max_length=3 * 1024 + 3, pattern=r"^[\x21-\x7e]*$")]
Most = Annotated[int, Query(ge=0)]


class HasFiles(Protocol):
    """Whose files they are: `machines.Machines`."""

    def file_browser(self, vm_id: str) -> FileBrowser:
        """Raises NoSuchMachine, MachineBusy when it does not run."""


def routes(machines: HasFiles) -> APIRouter:
    """Folders and contents of these machines."""
    router = APIRouter(prefix="/machines/{vm_id}")

    @router.get("/folder")
    async def _list(vm_id: VmId, path: Place) -> FolderView:
        entries, more = await machines.file_browser(vm_id).entries(unquote_to_bytes(path))
        return FolderView(entries=[_told(entry) for entry in entries], more=more)

    @router.put("/folder", status_code=204)
    async def _make(vm_id: VmId, path: Place) -> None:
        await machines.file_browser(vm_id).make_folder(unquote_to_bytes(path))

    @router.post("/move", status_code=204)
    async def _move(vm_id: VmId, path: Place, to: Place) -> None:
        await machines.file_browser(vm_id).move(unquote_to_bytes(path), unquote_to_bytes(to))

    @router.delete("/content", status_code=204)
    async def _remove(vm_id: VmId, path: Place, with_content: bool = False) -> None:
        files = machines.file_browser(vm_id)
        await files.remove(unquote_to_bytes(path), with_content=with_content)

    @router.get("/content")
    async def _read(vm_id: VmId, path: Place, max_bytes: Most) -> StreamingResponse:
        files = machines.file_browser(vm_id)
        return _Carried(await files.download(unquote_to_bytes(path), max_bytes))

    @router.put("/content")
    async def _write(
        request: Request, vm_id: VmId, path: Place, max_bytes: Most, replace: bool = False
    ) -> Uploaded:
        size = await machines.file_browser(vm_id).upload(
            unquote_to_bytes(path), _pieces(request), max_bytes, replace=replace
        )
        return Uploaded(size=size)

    return router


class _Carried(StreamingResponse):
    """A download on its way. One that is cut ends its connection short of its length."""

    def __init__(self, download: Download) -> None:
        headers = {"content-length": str(download.size)}
        super().__init__(self._pieces(), 200, headers, "application/octet-stream")
        self._download = download

    async def _pieces(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._download:
                yield piece
        finally:
            await self._download.aclose()


async def _pieces(request: Request) -> AsyncIterator[bytes]:
    try:
        async for piece in request.stream():
            yield piece
    except ClientDisconnect:
        raise ChannelLost("Whoever sent the file went before its end") from None


def _told(entry: Entry) -> FileEntry:
    return FileEntry(
        name=quote_from_bytes(entry.name, safe=""),
        kind=entry.kind,
        size=entry.size,
        modified_at=datetime.fromtimestamp(entry.modified_s, UTC),
        mode=entry.mode,
    )
