"""Reading and writing files of a machine that is off, in its disk image, without mounting it.

`machines.py` calls it for credentials and the like. The machine's files are the overlay's `upper/`
directory; the guest owns all of it, so nothing found there is followed or believed. Every file is
written aside, read back and only then put in place. What was in the way of a directory is removed
(a symlink, a file); what a machine has as a directory where a file shall go is kept beside it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from polydev.hostagent.provisioning.ext4_image import ROOT_INODE, Filesystem, FileType, Inode
from polydev.hostagent.system.cancellation import run_in_thread_shielded
from polydev.hostagent.system.sandbox import MemoryFile
from polydev.shared.domain import GuestFile
from polydev.shared.errors import (
    BadPath,
    DiskFull,
    ImageDamaged,
    ImageInUse,
    MissingImage,
    NoSuchFile,
)

UPPER = "upper"
_COMPONENT = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._][A-Za-z0-9._-]{0,254}")
_WHOLE_FILE_WRITE_LOCK = struct.pack("hh4xqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
_OPAQUE = ("trusted.overlay.opaque", "y")


async def write_offline(
    image: Path, files: Sequence[GuestFile], *, golden: Path | None = None
) -> None:
    """Write files into a stopped machine's disk.

    Directories that are missing are made as `golden` (the machine's root image) has them, else
    0700 root. Replaces what is there, symlinks included. A file is there whole or not at all.
    Raises: ImageInUse if a VMM holds the image; ImageDamaged if e2fsck cannot mend it or what was
    written does not read back; DiskFull; BadPath; MissingImage if there is no such image.
    Source: debugfs(8); overlayfs.rst of Linux, "whiteouts and opaque directories".
    """
    wanted = [(_parts(file.path), file) for file in files]
    async with _held(image) as disk, _golden(golden) as lower:
        await disk.check()
        overlay = _Overlay(disk, lower)
        for names, file in wanted:
            await overlay.write(names, file)


async def remove_offline(image: Path, paths: Sequence[str]) -> None:
    """Remove files that a stopped machine wrote; done also when they are not there.

    A symlink is removed, not what it names. A file of the golden image comes back.
    Raises: BadPath for a directory; otherwise as `write_offline`.
    """
    wanted = [(_parts(path), path) for path in paths]
    async with _held(image) as disk:
        await disk.check()
        for names, path in wanted:
            await _remove(disk, names, path)


async def read_offline(image: Path, path: str, *, limit_bytes: int) -> bytes:
    """The first `limit_bytes` of a regular file that a stopped machine wrote.

    Raises: NoSuchFile, also when a symlink is in the way; otherwise as `write_offline`.
    """
    names = _parts(path)
    async with _held(image) as disk:
        await disk.check()
        found = await disk.walk(ROOT_INODE, [UPPER, *names])
        if len(found) <= len(names) or found[-1].type is not FileType.REGULAR:
            raise NoSuchFile(f"The machine has no file of its own at {path}")
        return await disk.read(found[-1], limit_bytes)


async def _remove(disk: Filesystem, names: Sequence[str], path: str) -> None:
    for _ in range(2):
        found = await disk.walk(ROOT_INODE, [UPPER, *names])
        # A whiteout hides a file of the golden image: the machine has removed it already.
        if len(found) <= len(names) or found[-1].type is FileType.CHAR_DEVICE:
            return
        if found[-1].is_directory:
            raise BadPath(f"{path} is a directory")
        words = await disk.edit([f"cd <{found[-2].number}>", f"rm {names[-1]}"])
    raise ImageDamaged(f"{path} cannot be removed from the machine's disk: {words}")


@dataclass(frozen=True, slots=True)
class _Overlay:
    """The machine's own layer, and the golden image below it where the caller named it."""

    disk: Filesystem
    lower: Filesystem | None

    async def write(self, names: Sequence[str], file: GuestFile) -> None:
        """Write one file: parents, content aside, proof, then its place."""
        upper = await self._upper()
        found = await self.disk.walk(upper.number, names)
        if file.if_absent and await self._is_there(names, found):
            return
        folder = await self._folder(upper, names[:-1], found)
        old = found[-1] if len(found) == len(names) else None
        aside = await self._free_aside(folder, names[-1])
        try:
            new = await self._write_aside(folder, aside, file)
            await self._put_in_place(folder, aside, names[-1], new, old)
        except (DiskFull, ImageDamaged):
            await self.disk.edit([f"cd <{folder.number}>", f"rm {aside}"])
            raise

    async def _free_aside(self, folder: Inode, name: str) -> str:
        """A free name to write `name` aside under: the one that a killed agent may have left."""
        aside = _aside_name(name, "new")
        for there in await self.disk.walk(folder.number, [aside]):
            if there.is_directory:
                return _aside_name(name)
            await self.disk.edit([f"cd <{folder.number}>", f"rm {aside}"])
        return aside

    async def _upper(self) -> Inode:
        """`upper/`, which the initramfs makes at the first boot if the host did not."""
        found = await self.disk.walk(ROOT_INODE, [UPPER])
        if found and found[0].is_directory:
            return found[0]
        root = Inode(ROOT_INODE, FileType.DIRECTORY, 0o755, 0, 0, 0)
        return await self._make_folder(root, UPPER, found[0] if found else None, root)

    async def _is_there(self, names: Sequence[str], found: Sequence[Inode]) -> bool:
        """True if the machine sees something of that name."""
        last = found[-1] if found else None
        if len(found) == len(names):
            return last is not None and last.type is not FileType.CHAR_DEVICE
        if last is not None and not last.is_directory:
            return False
        if self.lower is None or len(await self.lower.walk(ROOT_INODE, names)) < len(names):
            return False
        for folder in found:
            if await self.disk.has_attribute(folder, *_OPAQUE):
                return False
        return True

    async def _folder(self, upper: Inode, names: Sequence[str], found: Sequence[Inode]) -> Inode:
        """The directory that `names` lead to, with what is missing of it made."""
        folder = upper
        models = await self._models(names) if len(found) < len(names) + 1 else []
        for depth, name in enumerate(names):
            there = found[depth] if depth < len(found) else None
            if there is not None and there.is_directory:
                folder = there
                continue
            model = models[depth] if depth < len(models) else None
            folder = await self._make_folder(folder, name, there, model)
            if there is not None:
                models = []  # what was here hid the golden image's directory, and so does ours
        return folder

    async def _models(self, names: Sequence[str]) -> Sequence[Inode]:
        """The golden image's directories of those names, as far as it has them."""
        if self.lower is None:
            return []
        found = await self.lower.walk(ROOT_INODE, names)
        if found and not found[-1].is_directory:
            wrong = "/".join(["", *names[: len(found)]])
            raise BadPath(
                f"{wrong} is no directory in the golden image",
                hint="Name the file by its real path there",
            )
        return found

    async def _make_folder(
        self, parent: Inode, name: str, there: Inode | None, model: Inode | None
    ) -> Inode:
        """Make a directory, in place of what is in its way, as its model or 0700 root."""
        mode, uid, gid = (model.mode, model.uid, model.gid) if model else (0o700, 0, 0)
        words = await self.disk.edit(
            [
                f"cd <{parent.number}>",
                *([f"rm {name}"] if there else []),
                f"mkdir {name}",
                f"set_inode_field {name} mode 0{0o040000 | mode:o}",
                f"set_inode_field {name} uid {uid}",
                f"set_inode_field {name} gid {gid}",
                *([f"ea_set {name} {' '.join(_OPAQUE)}"] if there else []),
            ]
        )
        made = await self.disk.walk(parent.number, [name])
        if not made or not made[0].is_directory or _ownership(made[0]) != (mode, uid, gid):
            raise ImageDamaged(f"Directory {name} cannot be made in the machine's disk: {words}")
        return made[0]

    async def _write_aside(self, folder: Inode, aside: str, file: GuestFile) -> Inode:
        """Write a file under another name and read it back: content, mode and owner."""
        with MemoryFile(file.content) as source:
            words = await self.disk.edit(
                [
                    f"cd <{folder.number}>",
                    f"write /proc/self/fd/{source.fileno()} {aside}",
                    f"set_inode_field {aside} mode 0{0o100000 | file.mode:o}",
                    f"set_inode_field {aside} uid {file.uid}",
                    f"set_inode_field {aside} gid {file.gid}",
                ],
                source.fileno(),
            )
        made = await self.disk.walk(folder.number, [aside])
        if not made or not _is_as_asked(made[0], file):
            raise ImageDamaged(f"{file.path} cannot be written to the machine's disk: {words}")
        if await self.disk.read(made[0], len(file.content) + 1) != file.content:
            raise ImageDamaged(f"{file.path} does not read back from the machine's disk: {words}")
        return made[0]

    async def _put_in_place(
        self, folder: Inode, aside: str, name: str, new: Inode, old: Inode | None
    ) -> None:
        """Give the file its name, in place of what had it. A directory is kept beside it."""
        clear: list[str] = []
        if old is not None and old.is_directory:
            clear = [f"ln <{old.number}> {_aside_name(name)}", f"unlink {name}"]
        elif old is not None:
            clear = [f"rm {name}"]
        # `ln` and `unlink` leave the count of links as it is. The name written aside is no shorter
        # than the final one, so that there is room for that once the other is gone.
        moved = [*clear, f"unlink {aside}", f"ln <{new.number}> {name}"]
        words = await self.disk.edit([f"cd <{folder.number}>", *moved])
        found = await self.disk.walk(folder.number, [name])
        if not found or found[0] != new:
            raise ImageDamaged(f"{name} cannot be put in place in the machine's disk: {words}")


def _parts(path: str) -> list[str]:
    """A path's names, each safe as a word of a debugfs command. Raises: BadPath."""
    names = path.split("/")[1:] if path.startswith("/") else []
    if not names or len(path) > 1024 or not all(_COMPONENT.fullmatch(name) for name in names):
        raise BadPath(
            f"{path!r} is no path that can be written into a machine's disk",
            hint="It must be absolute, without `..`, and of letters, digits, `.`, `_` and `-`",
        )
    return names


def _aside_name(name: str, token: str = "") -> str:
    """Another name in the same directory, no shorter than `name`; a new one unless `token` is."""
    aside = f".polydev-{token or secrets.token_hex(8)}-"
    return (aside + name)[:255] if len(name) < 200 else aside.ljust(len(name), "-")


def _ownership(inode: Inode) -> tuple[int, int, int]:
    return inode.mode, inode.uid, inode.gid


def _is_as_asked(inode: Inode, file: GuestFile) -> bool:
    return (
        inode.type is FileType.REGULAR
        and inode.size == len(file.content)
        and _ownership(inode) == (file.mode, file.uid, file.gid)
    )


@asynccontextmanager
async def _held(image: Path) -> AsyncIterator[Filesystem]:
    """The disk, with the lock that QEMU takes too: neither can start while the other works."""
    descriptor = _open(image, os.O_RDWR)
    try:
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _WHOLE_FILE_WRITE_LOCK)
        except OSError as error:
            if error.errno not in {errno.EAGAIN, errno.EACCES}:
                raise
            raise ImageInUse(
                f"The disk {image} is in use: its machine runs, or files are being written into it",
                hint="Stop the machine first, or write through its channel",
            ) from None
        yield Filesystem(descriptor, image.parent.name)
        await run_in_thread_shielded(os.fsync, descriptor)
    finally:
        os.close(descriptor)


@asynccontextmanager
async def _golden(image: Path | None) -> AsyncIterator[Filesystem | None]:
    if image is None:
        yield None
        return
    descriptor = _open(image, os.O_RDONLY)
    try:
        yield Filesystem(descriptor, f"{image.parent.name}/{image.name}")
    finally:
        os.close(descriptor)


def _open(image: Path, flags: int) -> int:
    try:
        return os.open(image, flags | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise MissingImage(f"There is no disk image {image}") from None
