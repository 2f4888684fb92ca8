"""Files of any size into and out of a running machine, piece by piece, through SFTP.

`GuestFiles` calls it, for people's uploads and downloads; what Polydev itself writes and reads is
small and goes through `files.py`. Each piece has a limit of time, not the whole: how long a
transfer takes depends on its person, and how large it may be is the caller's to say.
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

from polydev.hostagent.channel.files import is_full
from polydev.hostagent.channel.sftp_dirs import called, refusals, require_free
from polydev.hostagent.channel.ssh_errors import translated
from polydev.shared.errors import BadPath, DiskFull, FileRefused, GuestMisbehaved, TooLarge

PIECE_BYTES = 512 * 1024
"""Enough for asyncssh to keep several requests underway."""
_NEW_MODE = 0o644
_ASIDE_NAME_BYTES = 200


class Download:
    """A regular file that is read to the size that it had when it was opened."""

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
        """Raises GuestMisbehaved if it has become shorter, ChannelLost."""
        offset = 0
        while offset < self.size:
            with translated(self._what):
                async with asyncio.timeout(self._piece_limit_s):
                    wanted = min(PIECE_BYTES, self.size - offset)
                    piece = cast(bytes, await self._file.read(wanted, offset))
            if not piece or len(piece) > wanted:
                raise GuestMisbehaved(f"{self._what}: it changed while it was read")
            offset += len(piece)
            yield piece

    async def aclose(self) -> None:
        """Let go of the file."""
        await self._closing.aclose()


async def opened(
    sftp: asyncssh.SFTPClient, path: bytes, max_bytes: int
) -> tuple[asyncssh.SFTPClientFile, int]:
    """A regular file and its size. It closes with its session: no guest can put that off.

    Raises BadPath for anything else, FileRefused. It is looked at before it is opened, since
    opening a FIFO waits for its writer, and once more when it is open, since the guest may have put
    something else in its place.
    """
    with refusals(path):
        _size_of(path, await sftp.stat(path), max_bytes)
        file = await sftp.open(path, asyncssh.FXF_READ, encoding=None)
        return file, _size_of(path, await file.stat(), max_bytes)


class Upload:
    """A file that is written aside, and appears whole or not at all."""

    def __init__(self, sftp: asyncssh.SFTPClient, path: bytes, *, replace: bool) -> None:
        folder, name = posixpath.split(path)
        self._sftp = sftp
        self._path = path
        self._replace = replace
        self._aside = posixpath.join(
            folder, b".%s.%s" % (name[:_ASIDE_NAME_BYTES], secrets.token_hex(8).encode())
        )

    async def write(self, pieces: AsyncIterator[bytes], max_bytes: int, limit_s: float) -> int:
        """Take all pieces, each within `limit_s`, and put the file in its place; its size.

        Raises: AlreadyExists unless it may `replace`, TooLarge, DiskFull, FileRefused, NoSuchFile.
        """
        try:
            with refusals(self._path):
                async with asyncio.timeout(limit_s):
                    mode = await self._mode()
                    file = await self._begun(mode)
                size = await self._filled(file, pieces, max_bytes, limit_s)
                async with asyncio.timeout(limit_s):
                    await self._finished(file)
                    return size
        except FileRefused:
            await self._given_up(limit_s)
            if await is_full(self._sftp):
                raise DiskFull(
                    f"The machine's disk has no room for {called(self._path)}",
                    hint="Remove something in it first",
                ) from None
            raise
        except BaseException:
            await self._given_up(limit_s)
            raise

    async def _mode(self) -> int:
        """Of what is replaced, or of a new file. Raises AlreadyExists, FileRefused."""
        if not self._replace:
            await require_free(self._sftp, self._path)
            return _NEW_MODE
        with contextlib.suppress(asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath):
            there = (await self._sftp.lstat(self._path)).permissions or 0
            if stat.S_ISDIR(there):
                raise FileRefused(f"{called(self._path)} is a folder", hint="Use another name")
            if stat.S_ISREG(there):
                return stat.S_IMODE(there) & 0o777
        return _NEW_MODE

    async def _begun(self, mode: int) -> asyncssh.SFTPClientFile:
        flags = asyncssh.FXF_WRITE | asyncssh.FXF_CREAT | asyncssh.FXF_EXCL
        attributes = asyncssh.SFTPAttrs(permissions=mode)
        return await self._sftp.open(self._aside, flags, attributes, encoding=None)

    async def _filled(
        self,
        file: asyncssh.SFTPClientFile,
        pieces: AsyncIterator[bytes],
        max_bytes: int,
        limit_s: float,
    ) -> int:
        size = 0
        async for piece in grouped(pieces):
            if size + len(piece) > max_bytes:
                raise TooLarge(f"A file has at most {max_bytes} bytes")
            async with asyncio.timeout(limit_s):
                await file.write(piece, size)
            size += len(piece)
        return size

    async def _finished(self, file: asyncssh.SFTPClientFile) -> None:
        await file.fsync()
        await file.close()
        if self._replace:
            await self._sftp.posix_rename(self._aside, self._path)
            return
        await require_free(self._sftp, self._path)
        await self._sftp.rename(self._aside, self._path)  # refuses to replace

    async def _given_up(self, limit_s: float) -> None:
        with contextlib.suppress(asyncssh.Error, OSError, TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._sftp.remove(self._aside)


async def grouped(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes in pieces that are worth a request."""
    kept = bytearray()
    async for piece in pieces:
        kept += piece
        if len(kept) >= PIECE_BYTES:
            yield bytes(kept)
            kept.clear()
    if kept:
        yield bytes(kept)


def _size_of(path: bytes, attributes: asyncssh.SFTPAttrs, max_bytes: int) -> int:
    if not stat.S_ISREG(attributes.permissions or 0):
        raise BadPath(f"{called(path)} is not a file that can be downloaded")
    size = attributes.size or 0
    if not 0 <= size <= max_bytes:
        raise FileRefused(
            f"{called(path)} has more than the {max_bytes} bytes that are carried",
            hint="Pack or split it in the terminal, for example with `split -b 200M`",
        )
    return size
