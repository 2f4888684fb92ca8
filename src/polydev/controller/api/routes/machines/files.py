"""`/api/vm/{vmId}/files`: the files of a person's machine, which is woken for them if it sleeps.

As in the terminal, a person is root there: any path may be named, but nothing at the top of the
tree be moved or removed by a slip. Names are bytes, and a hostile machine has any: `path` in an
answer is percent-encoded as it stands in a query, and names it exactly; `name` is for people's
eyes, with all that a page or a terminal would obey taken out. Contents are attachments of no type:
nothing that comes from a machine is ever shown as part of a page.
"""

# ruff: noqa: N815  (the names are the wire's)

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
from polydev.controller.api.http.error_responses import media_response, problem_responses
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
    description="An absolute path in the machine; it need not be UTF-8",
    examples=["/root/notes.md"],
)


async def _file_path(request: Request, path: Annotated[str, _ABSOLUTE]) -> bytes:
    return _raw_query_value(request, b"path")


async def _new_file_path(request: Request, to: Annotated[str, _ABSOLUTE]) -> bytes:
    return _raw_query_value(request, b"to")


def _raw_query_value(request: Request, name: bytes) -> bytes:
    """A parameter's bytes, which need not be text."""
    for pair in request.scope["query_string"].split(b"&"):
        key, _, value = pair.replace(b"+", b" ").partition(b"=")
        if unquote_to_bytes(key) == name:
            return unquote_to_bytes(value)
    raise BadRequest(f"The query names no {name.decode()}")


FilePath = Annotated[bytes, Depends(_file_path)]
NewFilePath = Annotated[bytes, Depends(_new_file_path)]


class FileInFolder(BaseModel):
    """Something in a folder of a machine."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(examples=["notes.md"], description="For people; not to name it by")
    path: str = Field(
        examples=["/root/notes.md"], description="Percent-encoded, to be put into a query as it is"
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
    """What is in a folder: folders first, then by name."""

    model_config = ConfigDict(frozen=True)

    path: str = Field(examples=["/root"], description="As in its entries")
    entries: list[FileInFolder]
    more: bool = Field(description="There is more than is listed")


class UploadedFile(BaseModel):
    """A file that was taken whole."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(examples=["notes.md"])
    path: str = Field(examples=["/root/notes.md"], description="Percent-encoded")
    size: int = Field(examples=[1204])


def display_name(name: bytes) -> str:
    """A name for people's eyes: control characters, and those that turn text around, are taken
    out, as is what is no UTF-8."""
    text = name.decode("utf-8", "replace")
    return "".join(char if char.isprintable() else _REPLACEMENT for char in text)


@router.get("/{vmId}/files", responses=problem_responses(*_FILE_ERRORS))
async def list_files(
    vm_id: VmIdInPath, caller: MachinesCaller, services: ServicesDep, place: FilePath
) -> Folder:
    """What is in a folder of a machine that runs."""
    files = await _open_files(services, caller, vm_id)
    found = await files.folder(place)
    entries = [FileInFolder.of(place, entry) for entry in found.entries]
    entries.sort(key=lambda it: (it.kind != "folder", it.name.casefold(), it.path))
    return Folder(path=quote_from_bytes(place), entries=entries, more=found.more)


@router.post(
    "/{vmId}/files/folder",
    status_code=204,
    responses=problem_responses(*_FILE_ERRORS, AlreadyExists),
)
async def make_folder(
    vm_id: VmIdInPath, caller: MachinesCaller, services: ServicesDep, place: FilePath
) -> None:
    """Make a folder, in one that is there."""
    await (await _open_files(services, caller, vm_id)).make_folder(place)


@router.post(
    "/{vmId}/files/move", status_code=204, responses=problem_responses(*_FILE_ERRORS, AlreadyExists)
)
async def move_file(
    vm_id: VmIdInPath,
    caller: MachinesCaller,
    services: ServicesDep,
    place: FilePath,
    to: NewFilePath,
) -> None:
    """Give a file or a folder another name, or another folder; nothing is replaced."""
    await (await _open_files(services, caller, vm_id)).move(place, to)


@router.delete("/{vmId}/files", status_code=204, responses=problem_responses(*_FILE_ERRORS))
async def remove_file(
    vm_id: VmIdInPath,
    caller: MachinesCaller,
    services: ServicesDep,
    place: FilePath,
    with_content: Annotated[
        bool, Query(alias="withContent", description="Also a folder that is not empty")
    ] = False,
) -> None:
    """Remove a file, a symbolic link or a folder."""
    files = await _open_files(services, caller, vm_id)
    await files.remove(place, with_content=with_content)


@router.get(
    "/{vmId}/files/content",
    response_class=StreamingResponse,
    responses=problem_responses(*_FILE_ERRORS, TooManyRequests)
    | media_response(_OCTETS, {"type": "string", "format": "binary"}),
)
async def download_file(
    vm_id: VmIdInPath, caller: MachinesCaller, services: ServicesDep, place: FilePath
) -> StreamingResponse:
    """A file, up to POLYDEV_FILE_LIMIT_MIB; a larger one is refused."""
    async with AsyncExitStack() as held:
        files = await _open_files(services, caller, vm_id)
        held.enter_context(FILE_TRANSFERS.acquire(caller))
        found = await held.enter_async_context(files.download(place, services.file_limit_bytes))
        return _Attachment(found, place, held.pop_all())


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
    place: FilePath,
    replace: Annotated[bool, Query(description="What has that name is replaced")] = False,
) -> UploadedFile:
    """Take a file of up to POLYDEV_FILE_LIMIT_MIB, whole or not at all, into a folder that is
    there. A symbolic link of that name is replaced, not followed."""
    limit = services.file_limit_bytes
    if int(request.headers.get("content-length", 0)) > limit:
        raise TooLarge(f"A file has at most {limit} bytes", hint="Pack it, or send it in parts")
    files = await _open_files(services, caller, vm_id)
    with FILE_TRANSFERS.acquire(caller):
        size = await files.upload(place, _read_body(request), limit, replace=replace)
    name = display_name(posixpath.basename(place))
    return UploadedFile(name=name, path=quote_from_bytes(place), size=size)


class _Attachment(ResourceStream):
    """A download on its way; it ends short of its length if the machine cuts it."""

    def __init__(self, download: Download, place: bytes, opened: AsyncExitStack) -> None:
        headers = {
            "Content-Disposition": content_disposition(posixpath.basename(place)),
            "Content-Length": str(download.size),
            "Content-Security-Policy": "default-src 'none'; sandbox; frame-ancestors 'none'",
            "X-Content-Type-Options": "nosniff",
        }
        super().__init__(_stream(download), _OCTETS, ExitStack(), headers)
        self._opened = opened

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._opened:
            try:
                await super().__call__(scope, receive, send)
            except PolydevError as error:
                log.warning("a download ended before its end: %s", error.line())


def content_disposition(name: bytes) -> str:
    """The header that has a browser save it (RFC 6266), under a name without surprises."""
    told = display_name(name).replace(_REPLACEMENT, "_").lstrip(".") or _FALLBACK_NAME
    plain = "".join(char if char.isascii() and char not in '"\\%/' else "_" for char in told)
    encoded = quote_from_bytes(told.encode(), safe="")
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{encoded}"


async def _stream(download: Download) -> AsyncGenerator[str | bytes]:
    async for piece in download.pieces:
        yield piece


async def _read_body(request: Request) -> AsyncIterator[bytes]:
    """The body as it comes; who sends nothing for long is waited for no longer."""
    pieces = aiter(request.stream())
    while True:
        try:
            async with asyncio.timeout(STALL_TIMEOUT_S):
                piece = await anext(pieces)
        except StopAsyncIteration:
            return
        except (TimeoutError, ClientDisconnect):
            raise BadRequest(f"The file stopped coming for {STALL_TIMEOUT_S:g} s") from None
        yield piece


async def _open_files(services: Services, caller: Caller, vm_id: str) -> MachineFiles:
    reached = MachineAccess(services, caller, VmId(vm_id), "its files")
    return (await reached.running_host()).files(VmId(vm_id))
