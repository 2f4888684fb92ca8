"""The routes for users' files in running machines.

A path is percent-encoded inside its query parameter: it is bytes, and names in a machine need not
be text.
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
QueryPath = Annotated[str, Query(max_length=3 * 1024 + 3, pattern=r"^[\x21-\x7e]*$")]
ByteLimit = Annotated[int, Query(ge=0)]


class FileAccess(Protocol):
    """Access to the files of machines; see `MachineService`."""

    def file_browser(self, vm_id: str) -> FileBrowser:
        """Return the files of a machine. Raises NoSuchMachine, MachineBusy if it is not running."""


def routes(machines: FileAccess) -> APIRouter:
    """Build the routes of folders and contents."""
    router = APIRouter(prefix="/machines/{vm_id}")

    @router.get("/folder")
    async def _list(vm_id: VmId, path: QueryPath) -> FolderView:
        entries, more = await machines.file_browser(vm_id).entries(unquote_to_bytes(path))
        return FolderView(entries=[_file_entry(entry) for entry in entries], more=more)

    @router.put("/folder", status_code=204)
    async def _make(vm_id: VmId, path: QueryPath) -> None:
        await machines.file_browser(vm_id).make_folder(unquote_to_bytes(path))

    @router.post("/move", status_code=204)
    async def _move(vm_id: VmId, path: QueryPath, to: QueryPath) -> None:
        await machines.file_browser(vm_id).move(unquote_to_bytes(path), unquote_to_bytes(to))

    @router.delete("/content", status_code=204)
    async def _remove(vm_id: VmId, path: QueryPath, with_content: bool = False) -> None:
        files = machines.file_browser(vm_id)
        await files.remove(unquote_to_bytes(path), with_content=with_content)

    @router.get("/content")
    async def _read(vm_id: VmId, path: QueryPath, max_bytes: ByteLimit) -> StreamingResponse:
        files = machines.file_browser(vm_id)
        return _DownloadResponse(await files.download(unquote_to_bytes(path), max_bytes))

    @router.put("/content")
    async def _write(
        request: Request, vm_id: VmId, path: QueryPath, max_bytes: ByteLimit, replace: bool = False
    ) -> Uploaded:
        size = await machines.file_browser(vm_id).upload(
            unquote_to_bytes(path), _pieces(request), max_bytes, replace=replace
        )
        return Uploaded(size=size)

    return router


class _DownloadResponse(StreamingResponse):
    """A download. If it is interrupted, the connection ends before its announced length."""

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
        raise ChannelLost("The sender disconnected before the end of the file") from None


def _file_entry(entry: Entry) -> FileEntry:
    return FileEntry(
        name=quote_from_bytes(entry.name, safe=""),
        kind=entry.kind,
        size=entry.size,
        modified_at=datetime.fromtimestamp(entry.modified_s, UTC),
        mode=entry.mode,
    )
