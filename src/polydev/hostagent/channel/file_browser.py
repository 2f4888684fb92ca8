"""What people do with the files of their running machine: look, make, move, remove, carry.

`Channel.guest_files` gives it. It checks paths, keeps limits of time and translates errors; how
each thing is done, `folders.py` and `transfers.py` know. Paths are bytes, as in the guest's kernel.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import asyncssh

from polydev.hostagent.channel import sftp_dirs, transfers
from polydev.hostagent.channel.sftp_dirs import called, checked, checked_new
from polydev.hostagent.channel.ssh_errors import translated

OpenSftp = Callable[[], Awaitable[asyncssh.SFTPClient]]


class GuestFiles:
    """The files of one machine. Every call opens an SFTP session of its own."""

    def __init__(self, open_sftp: OpenSftp, limit_s: float) -> None:
        """`limit_s`: how long each call, or each piece of a transfer, may take."""
        self._open_sftp = open_sftp
        self._limit_s = limit_s

    async def entries(self, path: bytes) -> tuple[list[sftp_dirs.Entry], bool]:
        """What is in a folder, and whether there is more than is told. Raises BadPath."""
        async with self._sftp(f"{called(checked(path))} cannot be listed") as sftp:
            return await sftp_dirs.listed(sftp, path)

    async def make_folder(self, path: bytes) -> None:
        """An empty folder. Raises AlreadyExists, NoSuchFile, FileRefused, BadPath."""
        async with self._sftp(f"{called(checked_new(path))} cannot be made") as sftp:
            await sftp_dirs.make_folder(sftp, path)

    async def move(self, path: bytes, to: bytes) -> None:
        """Give something another name or folder; nothing is replaced."""
        checked_new(to)
        async with self._sftp(f"{called(checked(path))} cannot be moved") as sftp:
            await sftp_dirs.move(sftp, path, to)

    async def remove(self, path: bytes, *, with_content: bool) -> None:
        """Remove something; a folder that is not empty only `with_content`."""
        async with self._sftp(f"{called(checked(path))} cannot be removed") as sftp:
            await sftp_dirs.remove(sftp, path, with_content=with_content)

    async def download(self, path: bytes, max_bytes: int) -> transfers.Download:
        """A regular file, piece by piece; to be closed. Raises NoSuchFile, BadPath, FileRefused."""
        what = f"{called(checked(path))} cannot be read"
        async with AsyncExitStack() as closing:
            with translated(what):
                sftp = await self._open_sftp()
                closing.callback(sftp.exit)
                async with asyncio.timeout(self._limit_s):
                    file, size = await transfers.opened(sftp, path, max_bytes)
            return transfers.Download(file, size, what, closing.pop_all(), self._limit_s)

    async def upload(
        self, path: bytes, pieces: AsyncIterator[bytes], max_bytes: int, *, replace: bool
    ) -> int:
        """Take a file whole, or not at all; its size. Its folder must be there.

        Raises: AlreadyExists unless it may `replace`, TooLarge, DiskFull, FileRefused, NoSuchFile.
        """
        with translated(f"{called(checked_new(path))} cannot be written"):
            sftp = await self._open_sftp()
            try:
                upload = transfers.Upload(sftp, path, replace=replace)
                return await upload.write(pieces, max_bytes, self._limit_s)
            finally:
                sftp.exit()

    @asynccontextmanager
    async def _sftp(self, what: str) -> AsyncIterator[asyncssh.SFTPClient]:
        with translated(what):
            sftp = await self._open_sftp()
            try:
                async with asyncio.timeout(self._limit_s):
                    yield sftp
            finally:
                sftp.exit()
