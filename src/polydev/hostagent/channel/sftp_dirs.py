"""Folders of a running machine, through SFTP: what is in them, and making, moving, removing.

`Channel` calls it with an open SFTP session, for people who look around in their machine. Names are
bytes, as the guest's kernel has them: whatever it holds can be named, and so be removed. All that
the guest tells is bounded, and what it cannot mean is passed over. A symlink is never followed but
where a path leads through one.
"""

from __future__ import annotations

import contextlib
import posixpath
import stat
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Literal, cast

import asyncssh

from polydev.hostagent.channel.ssh_errors import CUT, shown
from polydev.shared.errors import AlreadyExists, BadPath, FileRefused, GuestMisbehaved, PolydevError

MAX_ENTRIES = 2000
"""Of a folder, that are told."""
MAX_REMOVED = 20_000
"""Files and folders that one removal takes."""
MAX_PASSED_OVER = 1000
"""Names in a folder that are none."""
_PATH_BYTES = 1024
_NAME_BYTES = 255
_LARGEST = 2**53 - 1
_LATEST_S = 253402300799
"""The end of the year 9999."""

Kind = Literal["folder", "file", "link", "other"]
_NOT_THERE = (asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath)


@dataclass(frozen=True, slots=True)
class Entry:
    """Something in a folder, as its guest tells it."""

    name: bytes
    kind: Kind
    size: int
    modified_s: int
    """Unix time."""
    mode: int


def checked(path: bytes) -> bytes:
    """The path, if it is absolute, plain and not too long; `/` is. Raises BadPath."""
    plain = path.startswith(b"/") and posixpath.normpath(path) == path
    if not plain or path.startswith(b"//") or b"\0" in path:
        raise BadPath(f"{called(path)} is not an absolute, plain path")
    if len(path) > _PATH_BYTES:
        raise BadPath(f"A path has at most {_PATH_BYTES} bytes")
    return path


def checked_new(path: bytes) -> bytes:
    """A path whose last name is one that people can read and write. Raises BadPath."""
    name = posixpath.basename(checked(path))
    with contextlib.suppress(UnicodeDecodeError):
        text = name.decode()
        if text.strip() and text.isprintable() and len(name) <= _NAME_BYTES:
            return path
    raise BadPath(
        f"{called(path)} is not a name for something new",
        hint=f"A name has visible characters, and at most {_NAME_BYTES} bytes",
    )


def called(path: bytes) -> str:
    """A path for a message: without what a terminal or a page would take as anything but text."""
    return shown(path.decode(errors="replace")) or "It"


async def listed(sftp: asyncssh.SFTPClient, path: bytes) -> tuple[list[Entry], bool]:
    """What is in a folder, in no order, and whether there is more than is told. Raises BadPath."""
    with refusals(path):
        if (await _found(sftp, path, follow=True)).kind != "folder":
            raise BadPath(f"{called(path)} is not a folder")
        entries: list[Entry] = []
        async for name, attributes in _scanned(sftp, path):
            if len(entries) == MAX_ENTRIES:
                return entries, True
            entries.append(entry_of(name, attributes))
    return entries, False


async def make_folder(sftp: asyncssh.SFTPClient, path: bytes) -> None:
    """An empty folder. Raises AlreadyExists, NoSuchFile for one in no folder, FileRefused."""
    with refusals(path):
        await require_free(sftp, path)
        await sftp.mkdir(path, asyncssh.SFTPAttrs(permissions=0o755))


async def move(sftp: asyncssh.SFTPClient, path: bytes, to: bytes) -> None:
    """Give something another name or folder; nothing is replaced.

    Raises: AlreadyExists, NoSuchFile, FileRefused, BadPath.
    """
    _require_own(path)
    _require_own(to)
    with refusals(path):
        await require_free(sftp, to)
        await sftp.rename(path, to)


async def remove(sftp: asyncssh.SFTPClient, path: bytes, *, with_content: bool) -> None:
    """Remove something; a folder that is not empty only `with_content`.

    Raises: NoSuchFile, FileRefused, BadPath; what was removed before stays so.
    """
    _require_own(path)
    with refusals(path):
        if (await _found(sftp, path, follow=False)).kind != "folder":
            await sftp.remove(path)
        elif with_content:
            await _remove_all(sftp, path)
        else:
            await sftp.rmdir(path)


async def require_free(sftp: asyncssh.SFTPClient, path: bytes) -> None:
    """Raises AlreadyExists if there is something of that name."""
    with contextlib.suppress(*_NOT_THERE):
        await sftp.lstat(path)
        raise AlreadyExists(f"{called(path)} is there already")


def entry_of(name: bytes, attributes: asyncssh.SFTPAttrs) -> Entry:
    """What attributes say; what they leave out, or exaggerate, is bounded."""
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
def refusals(path: bytes) -> Iterator[None]:
    """What the guest's file system does not let be done becomes FileRefused."""
    try:
        yield
    except (*_NOT_THERE, *CUT, PolydevError):
        raise
    except asyncssh.SFTPError as error:
        raise FileRefused(
            f"The machine does not let that be done to {called(path)}: {shown(str(error))}",
            hint="A folder may not be empty, a file system read-only: the terminal tells more",
        ) from None


def _require_own(path: bytes) -> None:
    """What lies at the top is the machine's: one slip would take it all."""
    if path.count(b"/") < 2:
        raise BadPath(f"{called(path)} cannot be moved or removed from here: the machine needs it")


async def _remove_all(sftp: asyncssh.SFTPClient, path: bytes) -> None:
    """Depth first, without recursion: how deep folders lie, the guest decides."""
    waiting, emptied, removed = [path], [], 0
    while waiting:
        folder = waiting.pop()
        emptied.append(folder)
        async for name, attributes in _scanned(sftp, folder):
            removed += 1
            if removed > MAX_REMOVED:
                raise FileRefused(
                    f"{called(path)} holds more than {MAX_REMOVED} files",
                    hint="Remove it in the terminal: rm -r",
                )
            place = posixpath.join(folder, name)
            if entry_of(name, attributes).kind == "folder":
                waiting.append(place)
            else:
                await sftp.remove(place)
    for folder in reversed(emptied):
        await sftp.rmdir(folder)


async def _found(sftp: asyncssh.SFTPClient, path: bytes, *, follow: bool) -> Entry:
    attributes = await (sftp.stat(path) if follow else sftp.lstat(path))
    return entry_of(posixpath.basename(path), attributes)


async def _scanned(
    sftp: asyncssh.SFTPClient, path: bytes
) -> AsyncIterator[tuple[bytes, asyncssh.SFTPAttrs]]:
    """What a folder holds, without what none can hold: its guest may answer anything.

    Raises GuestMisbehaved when too much of it is nothing: it could go on for as long as it may.
    """
    passed_over = 0
    async for it in sftp.scandir(path):
        name = it.filename
        plain = isinstance(name, bytes) and b"/" not in name and b"\0" not in name
        if plain and 0 < len(name) <= _NAME_BYTES and name not in (b".", b".."):
            yield cast(bytes, name), it.attrs
            continue
        passed_over += 1
        if passed_over > MAX_PASSED_OVER:
            raise GuestMisbehaved(f"{called(path)} holds names that cannot be")
