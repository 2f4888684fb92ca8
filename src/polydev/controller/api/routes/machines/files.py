"""Routes `/api/vm/{vmId}/files`: files of a machine, which resumes if hibernated.

The user is root there, as in the terminal: any path is allowed, but top-level entries cannot be
moved or removed by mistake. File names are bytes, and a hostile machine can use any: `path` in a
response is percent-encoded and exact; `name` is for display, without control characters. Content is
sent as an untyped attachment, so that a browser never renders it as part of a page.
"""

# ruff: noqa: N815  (field names of the API)

from __future__ import annotations

import asyncio
import logging
import posixpath
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, ExitStack
from datetime import datetime
from typing import Annotated, Literal, Self
from urllib.parse import quote_from_bytes, unquote_to_bytes

from fastapi import Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from polydev.controller.access import Caller
from polydev.controller.api.http import routers
from polydev.controller.api.http.concurrency_limits import FILE_TRANSFERS
from polydev.controller.api.http.openapi_responses import media_response, problem_responses
from polydev.controller.api.http.path_params import VmIdInPath
from polydev.controller.api.http.services import MachinesCaller, Services, ServicesDep
from polydev.controller.api.http.streams import STALL_TIMEOUT_S, ResourceStream
from polydev.controller.api.routes.machines.machine_access import MachineAccess
from polydev.shared.domain import VmId
from polydev.shared.errors import (
    AlreadyExists,
    BadPath,
    BadRequest,
    ChannelLost,
    DiskFull,
    Failed,
    FileRefused,
    GuestMisbehaved,
    HostUnreachable,
    MachineBusy,
    MachineNotReady,
    NoCapacity,
    NoSuchFile,
    NoSuchMachine,
    NoSuchUser,
    PolydevError,
    QuotaExceeded,
    TooLarge,
    TooManyRequests,
)
from polydev.shared.host_client.files import Download, MachineFiles
from polydev.shared.host_protocol import FileEntry

log = logging.getLogger("polydev.controller.api")
router = routers.router(prefix="/api/vm", tags=["machines"])

HOME = b"/root"
_MAX_PATH = 1024
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_OCTETS = "application/octet-stream"
_FALLBACK_NAME = "file"

_RESUME_ERRORS = (
    NoSuchMachine,
    MachineBusy,
    MachineNotReady,
    NoCapacity,
    QuotaExceeded,
    NoSuchUser,
)
_ACCESS_ERRORS = (*_RESUME_ERRORS, HostUnreachable, ChannelLost, GuestMisbehaved, Failed)
_FILE_ERRORS = (*_ACCESS_ERRORS, NoSuchFile, BadPath, FileRefused)


_ABSOLUTE = Query(
    min_length=1,
    max_length=_MAX_PATH,
    pattern=r"^/[^\x00]*$",
    description="Absolute path in the machine; need not be UTF-8",
    examples=["/root/notes.md"],
)


async def _file_path(request: Request, path: Annotated[str, _ABSOLUTE]) -> bytes:
    return _raw_query_value(request, b"path")


async def _new_file_path(request: Request, to: Annotated[str, _ABSOLUTE]) -> bytes:
    return _raw_query_value(request, b"to")


def _raw_query_value(request: Request, name: bytes) -> bytes:
    """Return a query parameter as bytes, which need not be UTF-8."""
    for pair in request.scope["query_string"].split(b"&"):
        key, _, value = pair.replace(b"+", b" ").partition(b"=")
        if unquote_to_bytes(key) == name:
            return unquote_to_bytes(value)
    raise BadRequest(f"The query parameter {name.decode()} is missing")


FilePath = Annotated[bytes, Depends(_file_path)]
NewFilePath = Annotated[bytes, Depends(_new_file_path)]


class FileInFolder(BaseModel):
    """An entry of a folder in a machine."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(examples=["notes.md"], description="For display only; use `path` in requests")
    path: str = Field(
        examples=["/root/notes.md"], description="Percent-encoded; put it into a query unchanged"
    )
    kind: Literal["folder", "file", "link", "other"]
    size: int = Field(examples=[1204], description="Bytes")
    modifiedAt: datetime

    @classmethod
    def of(cls, folder: bytes, entry: FileEntry) -> Self:
        name = unquote_to_bytes(entry.name)
        return cls(
            name=display_name(name),
            path=quote_from_bytes(posixpath.join(folder, name)),
            kind=entry.kind,
            size=entry.size,
            modifiedAt=entry.modified_at,
        )


class Folder(BaseModel):
    """Content of a folder: folders first, then by name."""

    model_config = ConfigDict(frozen=True)

    path: str = Field(examples=["/root"], description="Percent-encoded, as in the entries")
    entries: list[FileInFolder]
    more: bool = Field(description="The folder has more entries than are listed")


class UploadedFile(BaseModel):
    """A completed upload."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(examples=["notes.md"])
    path: str = Field(examples=["/root/notes.md"], description="Percent-encoded")
    size: int = Field(examples=[1204])


def display_name(name: bytes) -> str:
    """Return a name for display, with unprintable characters and invalid UTF-8 replaced.

    Unprintable includes characters that change the direction of text.
    """
    text = name.decode("utf-8", "replace")
    return "".join(char if char.isprintable() else _REPLACEMENT for char in text)


@router.get("/{vmId}/files", responses=problem_responses(*_FILE_ERRORS))
async def list_files(
    vm_id: VmIdInPath, caller: MachinesCaller, services: ServicesDep, file_path: FilePath
) -> Folder:
    """List a folder in a machine."""
    files = await _open_files(services, caller, vm_id)
    found = await files.folder(file_path)
    entries = [FileInFolder.of(file_path, entry) for entry in found.entries]
    entries.sort(key=lambda it: (it.kind != "folder", it.name.casefold(), it.path))
    return Folder(path=quote_from_bytes(file_path), entries=entries, more=found.more)


@router.post(
    "/{vmId}/files/folder",
    status_code=204,
    responses=problem_responses(*_FILE_ERRORS, AlreadyExists),
)
async def make_folder(
    vm_id: VmIdInPath, caller: MachinesCaller, services: ServicesDep, file_path: FilePath
) -> None:
    """Create a folder; its parent must exist."""
    await (await _open_files(services, caller, vm_id)).make_folder(file_path)


@router.post(
    "/{vmId}/files/move", status_code=204, responses=problem_responses(*_FILE_ERRORS, AlreadyExists)
)
async def move_file(
    vm_id: VmIdInPath,
    caller: MachinesCaller,
    services: ServicesDep,
    file_path: FilePath,
    to: NewFilePath,
) -> None:
    """Rename or move a file or folder. Existing files are never replaced."""
    await (await _open_files(services, caller, vm_id)).move(file_path, to)


@router.delete("/{vmId}/files", status_code=204, responses=problem_responses(*_FILE_ERRORS))
async def remove_file(
    vm_id: VmIdInPath,
    caller: MachinesCaller,
    services: ServicesDep,
    file_path: FilePath,
    with_content: Annotated[
        bool, Query(alias="withContent", description="Remove a folder even if it is not empty")
    ] = False,
) -> None:
    """Remove a file, a symbolic link or a folder."""
    files = await _open_files(services, caller, vm_id)
    await files.remove(file_path, with_content=with_content)


@router.get(
    "/{vmId}/files/content",
    response_class=StreamingResponse,
    responses=problem_responses(*_FILE_ERRORS, TooManyRequests)
    | media_response(_OCTETS, {"type": "string", "format": "binary"}),
)
async def download_file(
    vm_id: VmIdInPath, caller: MachinesCaller, services: ServicesDep, file_path: FilePath
) -> StreamingResponse:
    """Download a file of up to POLYDEV_FILE_LIMIT_MIB."""
    async with AsyncExitStack() as stack:
        files = await _open_files(services, caller, vm_id)
        stack.enter_context(FILE_TRANSFERS.acquire(caller))
        found = await stack.enter_async_context(
            files.download(file_path, services.file_limit_bytes)
        )
        return _Attachment(found, file_path, stack.pop_all())


@router.put(
    "/{vmId}/files/content",
    status_code=201,
    responses=problem_responses(*_FILE_ERRORS, AlreadyExists, DiskFull, TooLarge, TooManyRequests),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {_OCTETS: {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def upload_file(
    request: Request,
    vm_id: VmIdInPath,
    caller: MachinesCaller,
    services: ServicesDep,
    file_path: FilePath,
    replace: Annotated[bool, Query(description="Replace an existing file")] = False,
) -> UploadedFile:
    """Upload a file of up to POLYDEV_FILE_LIMIT_MIB, completely or not at all.

    The folder must exist. A symbolic link of that name is replaced, not followed.
    """
    limit = services.file_limit_bytes
    if int(request.headers.get("content-length", 0)) > limit:
        raise TooLarge(f"The file is larger than {limit} bytes", hint="Compress it, or split it")
    files = await _open_files(services, caller, vm_id)
    with FILE_TRANSFERS.acquire(caller):
        size = await files.upload(file_path, _read_body(request), limit, replace=replace)
    name = display_name(posixpath.basename(file_path))
    return UploadedFile(name=name, path=quote_from_bytes(file_path), size=size)


class _Attachment(ResourceStream):
    """A running download; it ends early if the machine fails."""

    def __init__(self, download: Download, file_path: bytes, resources: AsyncExitStack) -> None:
        headers = {
            "Content-Disposition": content_disposition(posixpath.basename(file_path)),
            "Content-Length": str(download.size),
            "Content-Security-Policy": "default-src 'none'; sandbox; frame-ancestors 'none'",
            "X-Content-Type-Options": "nosniff",
        }
        super().__init__(_stream(download), _OCTETS, ExitStack(), headers)
        self._opened = resources

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._opened:
            try:
                await super().__call__(scope, receive, send)
            except PolydevError as error:
                log.warning("download ended early: %s", error.line())


def content_disposition(name: bytes) -> str:
    """Return the Content-Disposition header with a safe name (RFC 6266)."""
    safe_name = display_name(name).replace(_REPLACEMENT, "_").lstrip(".") or _FALLBACK_NAME
    plain = "".join(char if char.isascii() and char not in '"\\%/' else "_" for char in safe_name)
    encoded = quote_from_bytes(safe_name.encode(), safe="")
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{encoded}"


async def _stream(download: Download) -> AsyncGenerator[str | bytes]:
    async for piece in download.pieces:
        yield piece


async def _read_body(request: Request) -> AsyncIterator[bytes]:
    """Yield the request body; fail if the client stalls."""
    pieces = aiter(request.stream())
    while True:
        try:
            async with asyncio.timeout(STALL_TIMEOUT_S):
                piece = await anext(pieces)
        except StopAsyncIteration:
            return
        except (TimeoutError, ClientDisconnect):
            raise BadRequest(f"The upload stalled for {STALL_TIMEOUT_S:g} s") from None
        yield piece


async def _open_files(services: Services, caller: Caller, vm_id: str) -> MachineFiles:
    reached = MachineAccess(services, caller, VmId(vm_id), "its files")
    return (await reached.running_host()).files(VmId(vm_id))
