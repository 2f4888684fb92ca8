"""Small files in a running machine, read and written through SFTP.

Files are written atomically: to a temporary file in the same folder, with owner and mode, synced,
then renamed. So no program in the guest reads a partial file, and a symlink in its place is
replaced, not followed.
"""

from __future__ import annotations

import contextlib
import posixpath
import secrets
import stat
from typing import cast

import asyncssh

from polydev.shared.domain import GuestFile
from polydev.shared.errors import BadPath, DiskFull, GuestMisbehaved
from polydev.shared.hints import Hint

_PATH_BYTES = 1024
_PARENT_MODE = 0o700
_MIN_FREE_BYTES = 64 * 1024


def validated_path(path: str) -> str:
    """Return the path if it is absolute and normalised. Raises: BadPath."""
    plain = path.startswith("/") and path != "/" and posixpath.normpath(path) == path
    if not plain or path.startswith("//") or not path.isprintable():
        raise BadPath(f"{path!r} is not an absolute, plain path to a file")
    if len(path.encode()) > _PATH_BYTES:
        raise BadPath(f"A path of {len(path)} characters is too long")
    return path


async def read_file(sftp: asyncssh.SFTPClient, path: str, max_bytes: int) -> bytes:
    """Read a regular file. Raises: GuestMisbehaved if it is too large or another type."""
    attributes = await sftp.stat(path)
    if attributes.permissions is None or not stat.S_ISREG(attributes.permissions):
        raise GuestMisbehaved(f"{path} in the machine is not a regular file")
    if (attributes.size or 0) > max_bytes:
        raise GuestMisbehaved(f"{path} in the machine is larger than {max_bytes} bytes")
    async with sftp.open(path, asyncssh.FXF_READ, encoding=None) as file:
        content = cast(bytes, await file.read(max_bytes + 1, 0))
    if len(content) > max_bytes:
        raise GuestMisbehaved(f"{path} in the machine is larger than {max_bytes} bytes")
    return content


async def write_file(sftp: asyncssh.SFTPClient, file: GuestFile) -> None:
    """Write one file with its parents. Raises: DiskFull if the machine's disk is full."""
    try:
        await _write_whole(sftp, file)
    except asyncssh.SFTPFailure:  # carries no reason
        if await is_disk_full(sftp):
            raise DiskFull(
                f"The machine's disk has no room for {file.path}",
                hint=Hint.FREE_MACHINE_DISK.text(),
            ) from None
        raise


async def _write_whole(sftp: asyncssh.SFTPClient, file: GuestFile) -> None:
    if file.if_absent and await _exists(sftp, file.path):
        return
    folder, name = posixpath.split(file.path)
    temporary = posixpath.join(folder, f".{name[:200]}.{secrets.token_hex(8)}")
    await _make_parents(sftp, folder)
    try:
        await _write_temporary(sftp, temporary, file)
        await _put_in_place(sftp, temporary, file)
        await _sync_rename(sftp, file)
    except BaseException:
        with contextlib.suppress(asyncssh.Error, OSError):
            await sftp.remove(temporary)
        raise


async def remove_file(sftp: asyncssh.SFTPClient, path: str) -> None:
    """Remove a file or symlink. Idempotent."""
    with contextlib.suppress(asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath):
        await sftp.remove(path)


async def _write_temporary(sftp: asyncssh.SFTPClient, temporary: str, file: GuestFile) -> None:
    flags = asyncssh.FXF_WRITE | asyncssh.FXF_CREAT | asyncssh.FXF_EXCL
    private = asyncssh.SFTPAttrs(permissions=0o600)
    async with sftp.open(temporary, flags, private, encoding=None) as remote:
        await remote.write(file.content, 0)
        # Two steps: changing the owner clears some mode bits.
        await remote.setstat(asyncssh.SFTPAttrs(uid=file.uid, gid=file.gid))
        await remote.setstat(asyncssh.SFTPAttrs(permissions=file.mode))
        await remote.fsync()


async def _put_in_place(sftp: asyncssh.SFTPClient, temporary: str, file: GuestFile) -> None:
    if not file.if_absent:
        await sftp.posix_rename(temporary, file.path)
        return
    try:
        await sftp.rename(temporary, file.path)  # refuses to replace
    except asyncssh.SFTPFailure:
        if not await _exists(sftp, file.path):
            raise
        await sftp.remove(temporary)


async def _sync_rename(sftp: asyncssh.SFTPClient, file: GuestFile) -> None:
    """Make the rename durable: a machine may end the moment the caller gets its answer.

    ext4 keeps both in one journal: fsync of the renamed file commits the rename too.
    """
    async with sftp.open(file.path, asyncssh.FXF_READ, encoding=None) as remote:
        await remote.fsync()


async def _make_parents(sftp: asyncssh.SFTPClient, folder: str) -> None:
    missing = []
    while folder != "/" and not await _exists(sftp, folder):
        missing.append(folder)
        folder = posixpath.dirname(folder)
    for parent in reversed(missing):
        with contextlib.suppress(asyncssh.SFTPFailure):  # created by others; open() would fail
            await sftp.mkdir(parent, asyncssh.SFTPAttrs(permissions=_PARENT_MODE))


async def is_disk_full(sftp: asyncssh.SFTPClient) -> bool:
    """Return True if the machine's disk is full."""
    with contextlib.suppress(asyncssh.Error, OSError):
        space = await sftp.statvfs("/")
        return space.bavail * space.frsize < _MIN_FREE_BYTES or space.favail == 0
    return False


async def _exists(sftp: asyncssh.SFTPClient, path: str) -> bool:
    try:
        await sftp.lstat(path)
    except (asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath):
        return False
    return True
