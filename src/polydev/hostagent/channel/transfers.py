"""Uploads and downloads of any size, piece by piece, through SFTP.

Polydev's own small files go through `files.py`. The time limit applies to each piece, not to the
whole: the duration of a transfer depends on its user, and the caller limits the size.
"""

from __future__ import annotations

import asyncio
import contextlib
import posixpath
import secrets
import stat
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import cast

import asyncssh

from polydev.hostagent.channel.files import is_disk_full
from polydev.hostagent.channel.sftp_dirs import display_path, require_absent, translate_refusals
from polydev.hostagent.channel.ssh_errors import translate_errors
from polydev.shared.errors import BadPath, DiskFull, FileRefused, GuestMisbehaved, TooLarge

PIECE_BYTES = 512 * 1024
"""Large enough for asyncssh to pipeline several requests."""
_NEW_MODE = 0o644
_NAME_PREFIX_BYTES = 200


class Download:
    """A regular file, read up to its size when it was opened."""

    def __init__(
        self,
        file: asyncssh.SFTPClientFile,
        size: int,
        what: str,
        closing: AsyncExitStack,
        piece_limit_s: float,
    ) -> None:
        self.size = size
        self._file = file
        self._what = what
        self._closing = closing
        self._piece_limit_s = piece_limit_s

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield pieces. Raises: GuestMisbehaved if the file became shorter, ChannelLost."""
        offset = 0
        while offset < self.size:
            with translate_errors(self._what):
                async with asyncio.timeout(self._piece_limit_s):
                    wanted = min(PIECE_BYTES, self.size - offset)
                    piece = cast(bytes, await self._file.read(wanted, offset))
            if not piece or len(piece) > wanted:
                raise GuestMisbehaved(f"{self._what}: it changed during the download")
            offset += len(piece)
            yield piece

    async def aclose(self) -> None:
        """Close the file."""
        await self._closing.aclose()


async def open_download(
    sftp: asyncssh.SFTPClient, path: bytes, max_bytes: int
) -> tuple[asyncssh.SFTPClientFile, int]:
    """Open a regular file and return it with its size; it closes with its session.

    Raises: BadPath for other types, FileRefused. The type is checked before opening, since opening
    a FIFO waits for a writer, and again afterwards, since the guest may have swapped the file.
    """
    with translate_refusals(path):
        _size_of(path, await sftp.stat(path), max_bytes)
        file = await sftp.open(path, asyncssh.FXF_READ, encoding=None)
        return file, _size_of(path, await file.stat(), max_bytes)


class Upload:
    """A file that is written to a temporary name, and then renamed."""

    def __init__(self, sftp: asyncssh.SFTPClient, path: bytes, *, replace: bool) -> None:
        folder, name = posixpath.split(path)
        self._sftp = sftp
        self._path = path
        self._replace = replace
        self._temporary = posixpath.join(
            folder, b".%s.%s" % (name[:_NAME_PREFIX_BYTES], secrets.token_hex(8).encode())
        )

    async def write(self, pieces: AsyncIterator[bytes], max_bytes: int, limit_s: float) -> int:
        """Write all pieces, each within `limit_s`, and return the size.

        Raises: AlreadyExists without `replace`, TooLarge, DiskFull, FileRefused, NoSuchFile.
        """
        try:
            with translate_refusals(self._path):
                async with asyncio.timeout(limit_s):
                    mode = await self._mode()
                    file = await self._create(mode)
                size = await self._fill(file, pieces, max_bytes, limit_s)
                async with asyncio.timeout(limit_s):
                    await self._finish(file)
                    return size
        except FileRefused:
            await self._abandon(limit_s)
            if await is_disk_full(self._sftp):
                raise DiskFull(
                    f"The machine's disk has no room for {display_path(self._path)}",
                    hint="Remove some files first",
                ) from None
            raise
        except BaseException:
            await self._abandon(limit_s)
            raise

    async def _mode(self) -> int:
        """Return the mode of the replaced or new file. Raises: AlreadyExists, FileRefused."""
        if not self._replace:
            await require_absent(self._sftp, self._path)
            return _NEW_MODE
        with contextlib.suppress(asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath):
            there = (await self._sftp.lstat(self._path)).permissions or 0
            if stat.S_ISDIR(there):
                raise FileRefused(
                    f"{display_path(self._path)} is a folder", hint="Use another name"
                )
            if stat.S_ISREG(there):
                return stat.S_IMODE(there) & 0o777
        return _NEW_MODE

    async def _create(self, mode: int) -> asyncssh.SFTPClientFile:
        flags = asyncssh.FXF_WRITE | asyncssh.FXF_CREAT | asyncssh.FXF_EXCL
        attributes = asyncssh.SFTPAttrs(permissions=mode)
        return await self._sftp.open(self._temporary, flags, attributes, encoding=None)

    async def _fill(
        self,
        file: asyncssh.SFTPClientFile,
        pieces: AsyncIterator[bytes],
        max_bytes: int,
        limit_s: float,
    ) -> int:
        size = 0
        async for piece in batched(pieces):
            if size + len(piece) > max_bytes:
                raise TooLarge(f"The file is larger than the limit of {max_bytes} bytes")
            async with asyncio.timeout(limit_s):
                await file.write(piece, size)
            size += len(piece)
        return size

    async def _finish(self, file: asyncssh.SFTPClientFile) -> None:
        await file.fsync()
        await file.close()
        if self._replace:
            await self._sftp.posix_rename(self._temporary, self._path)
            return
        await require_absent(self._sftp, self._path)
        await self._sftp.rename(self._temporary, self._path)  # refuses to replace

    async def _abandon(self, limit_s: float) -> None:
        with contextlib.suppress(asyncssh.Error, OSError, TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._sftp.remove(self._temporary)


async def batched(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Join small pieces to reasonable request sizes."""
    buffer = bytearray()
    async for piece in pieces:
        buffer += piece
        if len(buffer) >= PIECE_BYTES:
            yield bytes(buffer)
            buffer.clear()
    if buffer:
        yield bytes(buffer)


def _size_of(path: bytes, attributes: asyncssh.SFTPAttrs, max_bytes: int) -> int:
    if not stat.S_ISREG(attributes.permissions or 0):
        raise BadPath(f"{display_path(path)} is not a regular file")
    size = attributes.size or 0
    if not 0 <= size <= max_bytes:
        raise FileRefused(
            f"{display_path(path)} is larger than the limit of {max_bytes} bytes",
            hint="Compress or split it in the terminal, for example with `split -b 200M`",
        )
    return size
