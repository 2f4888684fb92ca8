"""Read and write files in a stopped machine's disk image, without mounting it.

The machine's files are the `upper/` directory of an overlay. The guest owns all of it, so nothing
there is followed or trusted. Each file is written under a temporary name, read back, and then put
in place. A symlink or file in place of a directory is removed; a directory in place of a file stays
beside it under another name.
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

    Missing directories are created as in `golden` (the machine's root image), else as 0700 root.
    Existing files and symlinks are replaced, atomically.
    Raises: ImageInUse if a VMM holds the image; ImageDamaged if e2fsck cannot repair it or a file
    does not read back; DiskFull; BadPath; MissingImage if there is no such image.
    Source: debugfs(8); overlayfs.rst of Linux, "whiteouts and opaque directories".
    """
    wanted = [(_parts(file.path), file) for file in files]
    async with _locked(image) as disk, _golden(golden) as lower:
        await disk.check()
        overlay = _Overlay(disk, lower)
        for names, file in wanted:
            await overlay.write(names, file)


async def remove_offline(image: Path, paths: Sequence[str]) -> None:
    """Remove files that a stopped machine wrote. Idempotent.

    A symlink is removed, not its target. A file of the golden image reappears.
    Raises: BadPath for a directory; otherwise as `write_offline`.
    """
    wanted = [(_parts(path), path) for path in paths]
    async with _locked(image) as disk:
        await disk.check()
        for names, path in wanted:
            await _remove(disk, names, path)


async def read_offline(image: Path, path: str, *, limit_bytes: int) -> bytes:
    """Read up to `limit_bytes` of a regular file that a stopped machine wrote.

    Raises: NoSuchFile, also for a symlink; otherwise as `write_offline`.
    """
    names = _parts(path)
    async with _locked(image) as disk:
        await disk.check()
        found = await disk.walk(ROOT_INODE, [UPPER, *names])
        if len(found) <= len(names) or found[-1].type is not FileType.REGULAR:
            raise NoSuchFile(f"The machine has no file of its own at {path}")
        return await disk.read(found[-1], limit_bytes)


async def _remove(disk: Filesystem, names: Sequence[str], path: str) -> None:
    for _ in range(2):
        found = await disk.walk(ROOT_INODE, [UPPER, *names])
        # A whiteout hides a file of the golden image: the machine has removed it.
        if len(found) <= len(names) or found[-1].type is FileType.CHAR_DEVICE:
            return
        if found[-1].is_directory:
            raise BadPath(f"{path} is a directory")
        errors = await disk.edit([f"cd <{found[-2].number}>", f"rm {names[-1]}"])
    raise ImageDamaged(f"{path} cannot be removed from the machine's disk: {errors}")


@dataclass(frozen=True, slots=True)
class _Overlay:
    """The machine's own layer, and the golden image below it, if known."""

    disk: Filesystem
    lower: Filesystem | None

    async def write(self, names: Sequence[str], file: GuestFile) -> None:
        """Create the parents, write under a temporary name, verify, put in place."""
        upper = await self._upper()
        found = await self.disk.walk(upper.number, names)
        if file.if_absent and await self._is_there(names, found):
            return
        folder = await self._folder(upper, names[:-1], found)
        old = found[-1] if len(found) == len(names) else None
        temporary = await self._free_temporary(folder, names[-1])
        try:
            new = await self._write_temporary(folder, temporary, file)
            await self._put_in_place(folder, temporary, names[-1], new, old)
        except (DiskFull, ImageDamaged):
            await self.disk.edit([f"cd <{folder.number}>", f"rm {temporary}"])
            raise

    async def _free_temporary(self, folder: Inode, name: str) -> str:
        """Return a free temporary name; remove the file that a killed agent left there."""
        temporary = _temporary_name(name, "new")
        for there in await self.disk.walk(folder.number, [temporary]):
            if there.is_directory:
                return _temporary_name(name)
            await self.disk.edit([f"cd <{folder.number}>", f"rm {temporary}"])
        return temporary

    async def _upper(self) -> Inode:
        """Return `upper/`; create it if the initramfs has not yet."""
        found = await self.disk.walk(ROOT_INODE, [UPPER])
        if found and found[0].is_directory:
            return found[0]
        root = Inode(ROOT_INODE, FileType.DIRECTORY, 0o755, 0, 0, 0)
        return await self._make_folder(root, UPPER, found[0] if found else None, root)

    async def _is_there(self, names: Sequence[str], found: Sequence[Inode]) -> bool:
        """Return True if the machine sees a file of that name."""
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
        """Return the directory of that path, and create what is missing."""
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
                models = []  # the new directory hides that of the golden image, as the old file did
        return folder

    async def _models(self, names: Sequence[str]) -> Sequence[Inode]:
        """Return the golden image's directories of that path, as far as they exist."""
        if self.lower is None:
            return []
        found = await self.lower.walk(ROOT_INODE, names)
        if found and not found[-1].is_directory:
            wrong = "/".join(["", *names[: len(found)]])
            raise BadPath(
                f"{wrong} is not a directory in the golden image",
                hint="Name the file by its real path there",
            )
        return found

    async def _make_folder(
        self, parent: Inode, name: str, there: Inode | None, model: Inode | None
    ) -> Inode:
        """Create a directory like its model, else as 0700 root; replace any file."""
        mode, uid, gid = (model.mode, model.uid, model.gid) if model else (0o700, 0, 0)
        errors = await self.disk.edit(
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
            raise ImageDamaged(
                f"Directory {name} cannot be created in the machine's disk: {errors}"
            )
        return made[0]

    async def _write_temporary(self, folder: Inode, temporary: str, file: GuestFile) -> Inode:
        """Write a file under a temporary name; read back content, mode and owner."""
        with MemoryFile(file.content) as source:
            errors = await self.disk.edit(
                [
                    f"cd <{folder.number}>",
                    f"write /proc/self/fd/{source.fileno()} {temporary}",
                    f"set_inode_field {temporary} mode 0{0o100000 | file.mode:o}",
                    f"set_inode_field {temporary} uid {file.uid}",
                    f"set_inode_field {temporary} gid {file.gid}",
                ],
                source.fileno(),
            )
        made = await self.disk.walk(folder.number, [temporary])
        if not made or not _matches(made[0], file):
            raise ImageDamaged(f"{file.path} cannot be written to the machine's disk: {errors}")
        if await self.disk.read(made[0], len(file.content) + 1) != file.content:
            raise ImageDamaged(f"{file.path} does not read back from the machine's disk: {errors}")
        return made[0]

    async def _put_in_place(
        self, folder: Inode, temporary: str, name: str, new: Inode, old: Inode | None
    ) -> None:
        """Rename the file into place. An existing directory stays under another name."""
        clear: list[str] = []
        if old is not None and old.is_directory:
            clear = [f"ln <{old.number}> {_temporary_name(name)}", f"unlink {name}"]
        elif old is not None:
            clear = [f"rm {name}"]
        # `ln` and `unlink` do not change the link count. The temporary name is no shorter than the
        # final one, so that the directory has room for that once the other is gone.
        moved = [*clear, f"unlink {temporary}", f"ln <{new.number}> {name}"]
        errors = await self.disk.edit([f"cd <{folder.number}>", *moved])
        found = await self.disk.walk(folder.number, [name])
        if not found or found[0] != new:
            raise ImageDamaged(f"{name} cannot be put in place in the machine's disk: {errors}")


def _parts(path: str) -> list[str]:
    """Split a path into names that are safe in debugfs commands. Raises BadPath."""
    names = path.split("/")[1:] if path.startswith("/") else []
    if not names or len(path) > 1024 or not all(_COMPONENT.fullmatch(name) for name in names):
        raise BadPath(
            f"{path!r} cannot be written into a machine's disk",
            hint="Use an absolute path of letters, digits, `.`, `_` and `-`, without `..`",
        )
    return names


def _temporary_name(name: str, token: str = "") -> str:
    """Return a name for the same directory, no shorter than `name`; random without `token`."""
    prefix = f".polydev-{token or secrets.token_hex(8)}-"
    return (prefix + name)[:255] if len(name) < 200 else prefix.ljust(len(name), "-")


def _ownership(inode: Inode) -> tuple[int, int, int]:
    return inode.mode, inode.uid, inode.gid


def _matches(inode: Inode, file: GuestFile) -> bool:
    return (
        inode.type is FileType.REGULAR
        and inode.size == len(file.content)
        and _ownership(inode) == (file.mode, file.uid, file.gid)
    )


@asynccontextmanager
async def _locked(image: Path) -> AsyncIterator[Filesystem]:
    """Open the disk with the lock that QEMU takes too."""
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
