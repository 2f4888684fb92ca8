"""Folder operations in a running machine, through SFTP: list, create, move, remove.

Names are bytes, as in the guest's kernel, so that everything can be named and thus removed.
Everything the guest reports is bounded; impossible names are skipped. A symlink is followed only in
the middle of a path.
"""

from __future__ import annotations

import contextlib
import posixpath
import stat
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Literal, cast

import asyncssh

from polydev.hostagent.channel.ssh_errors import CONNECTION_ERRORS, printable
from polydev.shared.errors import AlreadyExists, BadPath, FileRefused, GuestMisbehaved, PolydevError

MAX_ENTRIES = 2000
"""The most entries of a folder that are listed."""
MAX_REMOVED = 20_000
"""The most files and folders in one removal."""
MAX_SKIPPED = 1000
"""The most impossible names in a folder."""
_PATH_BYTES = 1024
_NAME_BYTES = 255
_LARGEST = 2**53 - 1
_LATEST_S = 253402300799
"""The end of the year 9999."""

Kind = Literal["folder", "file", "link", "other"]
_NOT_THERE = (asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath)


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of a folder, as its guest reports it."""

    name: bytes
    kind: Kind
    size: int
    modified_s: int
    """Unix time."""
    mode: int


def validated(path: bytes) -> bytes:
    """Return the path if it is absolute, normalised and not too long. Raises: BadPath."""
    plain = path.startswith(b"/") and posixpath.normpath(path) == path
    if not plain or path.startswith(b"//") or b"\0" in path:
        raise BadPath(f"{display_path(path)} is not an absolute, plain path")
    if len(path) > _PATH_BYTES:
        raise BadPath(f"The path is longer than {_PATH_BYTES} bytes")
    return path


def validated_new(path: bytes) -> bytes:
    """Return a path whose last name is printable. Raises: BadPath."""
    name = posixpath.basename(validated(path))
    with contextlib.suppress(UnicodeDecodeError):
        text = name.decode()
        if text.strip() and text.isprintable() and len(name) <= _NAME_BYTES:
            return path
    raise BadPath(
        f"{display_path(path)} is not a valid name",
        hint=f"Use visible characters, at most {_NAME_BYTES} bytes",
    )


def display_path(path: bytes) -> str:
    """Format a path for messages, without control characters."""
    return printable(path.decode(errors="replace")) or "It"


async def list_folder(sftp: asyncssh.SFTPClient, path: bytes) -> tuple[list[Entry], bool]:
    """List a folder, unsorted, and report truncation. Raises: BadPath."""
    with translate_refusals(path):
        if (await _entry(sftp, path, follow=True)).kind != "folder":
            raise BadPath(f"{display_path(path)} is not a folder")
        entries: list[Entry] = []
        async for name, attributes in _scan(sftp, path):
            if len(entries) == MAX_ENTRIES:
                return entries, True
            entries.append(entry_of(name, attributes))
    return entries, False


async def make_folder(sftp: asyncssh.SFTPClient, path: bytes) -> None:
    """Create a folder. Raises: AlreadyExists, NoSuchFile without a parent, FileRefused."""
    with translate_refusals(path):
        await require_absent(sftp, path)
        await sftp.mkdir(path, asyncssh.SFTPAttrs(permissions=0o755))


async def move(sftp: asyncssh.SFTPClient, path: bytes, to: bytes) -> None:
    """Rename or move something; nothing is replaced.

    Raises: AlreadyExists, NoSuchFile, FileRefused, BadPath.
    """
    _require_own(path)
    _require_own(to)
    with translate_refusals(path):
        await require_absent(sftp, to)
        await sftp.rename(path, to)


async def remove(sftp: asyncssh.SFTPClient, path: bytes, *, with_content: bool) -> None:
    """Remove something; a folder that is not empty only `with_content`.

    Raises: NoSuchFile, FileRefused, BadPath; parts that were removed before stay removed.
    """
    _require_own(path)
    with translate_refusals(path):
        if (await _entry(sftp, path, follow=False)).kind != "folder":
            await sftp.remove(path)
        elif with_content:
            await _remove_all(sftp, path)
        else:
            await sftp.rmdir(path)


async def require_absent(sftp: asyncssh.SFTPClient, path: bytes) -> None:
    """Raise AlreadyExists if the path exists."""
    with contextlib.suppress(*_NOT_THERE):
        await sftp.lstat(path)
        raise AlreadyExists(f"{display_path(path)} already exists")


def entry_of(name: bytes, attributes: asyncssh.SFTPAttrs) -> Entry:
    """Convert attributes to an entry; missing or absurd values are bounded."""
    mode = attributes.permissions or 0
    kinds: dict[int, Kind] = {stat.S_IFDIR: "folder", stat.S_IFREG: "file", stat.S_IFLNK: "link"}
    return Entry(
        name=name,
        kind=kinds.get(stat.S_IFMT(mode), "other"),
        size=max(0, min(attributes.size or 0, _LARGEST)),
        modified_s=max(0, min(int(attributes.mtime or 0), _LATEST_S)),
        mode=stat.S_IMODE(mode),
    )


@contextlib.contextmanager
def translate_refusals(path: bytes) -> Iterator[None]:
    """Turn refusals of the guest's file system into FileRefused."""
    try:
        yield
    except (*_NOT_THERE, *CONNECTION_ERRORS, PolydevError):
        raise
    except asyncssh.SFTPError as error:
        raise FileRefused(
            f"The machine refused the operation on {display_path(path)}: {printable(str(error))}",
            hint="The folder may not be empty, or the file system read-only; see the terminal",
        ) from None


def _require_own(path: bytes) -> None:
    """Protect the top level, which belongs to the machine."""
    if path.count(b"/") < 2:
        raise BadPath(f"{display_path(path)} cannot be moved or removed here: the machine needs it")


async def _remove_all(sftp: asyncssh.SFTPClient, path: bytes) -> None:
    """Remove depth first, without recursion: the guest decides the depth."""
    waiting, emptied, removed = [path], [], 0
    while waiting:
        folder = waiting.pop()
        emptied.append(folder)
        async for name, attributes in _scan(sftp, folder):
            removed += 1
            if removed > MAX_REMOVED:
                raise FileRefused(
                    f"{display_path(path)} contains more than {MAX_REMOVED} files",
                    hint="Remove it in the terminal: rm -r",
                )
            entry = posixpath.join(folder, name)
            if entry_of(name, attributes).kind == "folder":
                waiting.append(entry)
            else:
                await sftp.remove(entry)
    for folder in reversed(emptied):
        await sftp.rmdir(folder)


async def _entry(sftp: asyncssh.SFTPClient, path: bytes, *, follow: bool) -> Entry:
    attributes = await (sftp.stat(path) if follow else sftp.lstat(path))
    return entry_of(posixpath.basename(path), attributes)


async def _scan(
    sftp: asyncssh.SFTPClient, path: bytes
) -> AsyncIterator[tuple[bytes, asyncssh.SFTPAttrs]]:
    """Yield a folder's entries without impossible names.

    Raises: GuestMisbehaved if there are too many of those, which could go on forever.
    """
    skipped = 0
    async for it in sftp.scandir(path):
        name = it.filename
        plain = isinstance(name, bytes) and b"/" not in name and b"\0" not in name
        if plain and 0 < len(name) <= _NAME_BYTES and name not in (b".", b".."):
            yield cast(bytes, name), it.attrs
            continue
        skipped += 1
        if skipped > MAX_SKIPPED:
            raise GuestMisbehaved(f"{display_path(path)} contains impossible names")
