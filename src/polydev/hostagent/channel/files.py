"""Files in a running machine, through SFTP.

`Channel` calls it with an open SFTP session. A file appears whole or not at all: written aside in
its own folder under a fresh name, given owner and mode, synced, renamed; so a program in the guest
never reads half of one, and a symlink in its place is replaced, not followed.
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

_PATH_BYTES = 1024
_PARENT_MODE = 0o700
_LEAST_BYTES = 64 * 1024


def checked_path(path: str) -> str:
    """The path, if it is absolute and plain. Raises BadPath."""
    plain = path.startswith("/") and path != "/" and posixpath.normpath(path) == path
    if not plain or path.startswith("//") or not path.isprintable():
        raise BadPath(f"{path!r} is not an absolute, plain path to a file")
    if len(path.encode()) > _PATH_BYTES:
        raise BadPath(f"A path of {len(path)} characters is too long")
    return path


async def read_file(sftp: asyncssh.SFTPClient, path: str, max_bytes: int) -> bytes:
    """A regular file's content. Raises GuestMisbehaved if it is larger or something else."""
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
    """Put one file in its place, with its parents. Raises DiskFull when the machine's disk is."""
    try:
        await _write_whole(sftp, file)
    except asyncssh.SFTPFailure:  # says no more than that; what is wrong, we must look for
        if await is_full(sftp):
            raise DiskFull(
                f"The machine's disk has no room for {file.path}",
                hint="Free some of it: polydev machine exec <machine> sh",
            ) from None
        raise


async def _write_whole(sftp: asyncssh.SFTPClient, file: GuestFile) -> None:
    if file.if_absent and await _is_there(sftp, file.path):
        return
    folder, name = posixpath.split(file.path)
    aside = posixpath.join(folder, f".{name[:200]}.{secrets.token_hex(8)}")
    await _make_parents(sftp, folder)
    try:
        await _write_aside(sftp, aside, file)
        await _put_in_place(sftp, aside, file)
        await _sync_place(sftp, file)
    except BaseException:
        with contextlib.suppress(asyncssh.Error, OSError):
            await sftp.remove(aside)
        raise


async def remove_file(sftp: asyncssh.SFTPClient, path: str) -> None:
    """Remove a file or a symlink. Does nothing if it is not there."""
    with contextlib.suppress(asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath):
        await sftp.remove(path)


async def _write_aside(sftp: asyncssh.SFTPClient, aside: str, file: GuestFile) -> None:
    flags = asyncssh.FXF_WRITE | asyncssh.FXF_CREAT | asyncssh.FXF_EXCL
    private = asyncssh.SFTPAttrs(permissions=0o600)
    async with sftp.open(aside, flags, private, encoding=None) as remote:
        await remote.write(file.content, 0)
        # Two steps: changing the owner clears some mode bits.
        await remote.setstat(asyncssh.SFTPAttrs(uid=file.uid, gid=file.gid))
        await remote.setstat(asyncssh.SFTPAttrs(permissions=file.mode))
        await remote.fsync()


async def _put_in_place(sftp: asyncssh.SFTPClient, aside: str, file: GuestFile) -> None:
    if not file.if_absent:
        await sftp.posix_rename(aside, file.path)
        return
    try:
        await sftp.rename(aside, file.path)  # refuses to replace
    except asyncssh.SFTPFailure:
        if not await _is_there(sftp, file.path):
            raise
        await sftp.remove(aside)


async def _sync_place(sftp: asyncssh.SFTPClient, file: GuestFile) -> None:
    """Make the file's name as lasting as its content: a machine may end the moment we answer.

    ext4 keeps both in one journal: syncing a file after it was renamed commits the renaming too.
    """
    async with sftp.open(file.path, asyncssh.FXF_READ, encoding=None) as remote:
        await remote.fsync()


async def _make_parents(sftp: asyncssh.SFTPClient, folder: str) -> None:
    missing = []
    while folder != "/" and not await _is_there(sftp, folder):
        missing.append(folder)
        folder = posixpath.dirname(folder)
    for parent in reversed(missing):
        with contextlib.suppress(asyncssh.SFTPFailure):  # made meanwhile: opening will tell
            await sftp.mkdir(parent, asyncssh.SFTPAttrs(permissions=_PARENT_MODE))


async def is_full(sftp: asyncssh.SFTPClient) -> bool:
    """Whether the machine's disk has no room left."""
    with contextlib.suppress(asyncssh.Error, OSError):
        room = await sftp.statvfs("/")
        return room.bavail * room.frsize < _LEAST_BYTES or room.favail == 0
    return False


async def _is_there(sftp: asyncssh.SFTPClient, path: str) -> bool:
    try:
        await sftp.lstat(path)
    except (asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath):
        return False
    return True
