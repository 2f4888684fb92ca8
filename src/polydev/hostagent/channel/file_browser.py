"""File operations of users in their running machine.

It validates paths, enforces time limits and translates errors; `sftp_dirs.py` and `transfers.py` do
the work. Paths are bytes, as in the guest's kernel.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import asyncssh

from polydev.hostagent.channel import sftp_dirs, transfers
from polydev.hostagent.channel.sftp_dirs import display_path, validated, validated_new
from polydev.hostagent.channel.ssh_errors import translate_errors

OpenSftp = Callable[[], Awaitable[asyncssh.SFTPClient]]


class FileBrowser:
    """The files of one machine. Every call opens its own SFTP session."""

    def __init__(self, open_sftp: OpenSftp, limit_s: float) -> None:
        """`limit_s` bounds each call, or each piece of a transfer."""
        self._open_sftp = open_sftp
        self._limit_s = limit_s

    async def entries(self, path: bytes) -> tuple[list[sftp_dirs.Entry], bool]:
        """List a folder, and report truncation. Raises: BadPath."""
        async with self._sftp(f"{display_path(validated(path))} cannot be listed") as sftp:
            return await sftp_dirs.list_folder(sftp, path)

    async def make_folder(self, path: bytes) -> None:
        """Create a folder. Raises: AlreadyExists, NoSuchFile, FileRefused, BadPath."""
        async with self._sftp(f"{display_path(validated_new(path))} cannot be created") as sftp:
            await sftp_dirs.make_folder(sftp, path)

    async def move(self, path: bytes, to: bytes) -> None:
        """Rename or move something; nothing is replaced."""
        validated_new(to)
        async with self._sftp(f"{display_path(validated(path))} cannot be moved") as sftp:
            await sftp_dirs.move(sftp, path, to)

    async def remove(self, path: bytes, *, with_content: bool) -> None:
        """Remove something; a folder that is not empty only `with_content`."""
        async with self._sftp(f"{display_path(validated(path))} cannot be removed") as sftp:
            await sftp_dirs.remove(sftp, path, with_content=with_content)

    async def download(self, path: bytes, max_bytes: int) -> transfers.Download:
        """Open a regular file for download; the caller closes it.

        Raises: NoSuchFile, BadPath, FileRefused.
        """
        what = f"{display_path(validated(path))} cannot be read"
        async with AsyncExitStack() as closing:
            with translate_errors(what):
                sftp = await self._open_sftp()
                closing.callback(sftp.exit)
                async with asyncio.timeout(self._limit_s):
                    file, size = await transfers.open_download(sftp, path, max_bytes)
            return transfers.Download(file, size, what, closing.pop_all(), self._limit_s)

    async def upload(
        self, path: bytes, pieces: AsyncIterator[bytes], max_bytes: int, *, replace: bool
    ) -> int:
        """Write a file atomically and return its size; its folder must exist.

        Raises: AlreadyExists without `replace`, TooLarge, DiskFull, FileRefused, NoSuchFile.
        """
        with translate_errors(f"{display_path(validated_new(path))} cannot be written"):
            sftp = await self._open_sftp()
            try:
                upload = transfers.Upload(sftp, path, replace=replace)
                return await upload.write(pieces, max_bytes, self._limit_s)
            finally:
                sftp.exit()

    @asynccontextmanager
    async def _sftp(self, what: str) -> AsyncIterator[asyncssh.SFTPClient]:
        with translate_errors(what):
            sftp = await self._open_sftp()
            try:
                async with asyncio.timeout(self._limit_s):
                    yield sftp
            finally:
                sftp.exit()
