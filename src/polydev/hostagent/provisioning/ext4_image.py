"""Inspect and edit a guest's ext4 image with e2fsprogs; the image may be hostile.

The tools run as the image's owner without any capability: a filesystem that exploits them gains
nothing that its VMM did not have.

debugfs follows symlinks when it resolves a path, and exits with 0 when it fails. So a path is
walked one name at a time, by inode numbers, and nothing counts as done until it was read back. Only
names that `offline_files` has checked reach a command. The output of debugfs may hold text of the
guest (a symlink's target, say): a random mark that the guest cannot know separates its sections,
and only the start of a section is read.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NoReturn

from polydev.hostagent.system.logs import harmless
from polydev.hostagent.system.sandbox import Finished, read_with, tool, write_with
from polydev.shared.errors import DiskFull, ImageDamaged

ROOT_INODE = 2

_CHECK_LIMIT_S = 300
_EDIT_LIMIT_S = 120
_LOOK_LIMIT_S = 60
_MAX_OUTPUT = 4 * 1024 * 1024
_HEADER = re.compile(
    rb"Inode: (\d+) +Type: ([a-zA-Z ]+?) +Mode: +0?([0-7]+) +Flags: 0x[0-9a-f]+\n"
    rb"Generation: [^\n]*\n"
    rb"User: +(\d+) +Group: +(\d+) +(?:Project: +\d+ +)?Size: (\d+)\n"
)
_PWD = re.compile(rb"\[pwd\] +INODE: +(\d+) ")
_FULL = ("Could not allocate block", "Could not allocate inode", "No free space in the directory")
_CORRECTED = {0, 1, 2}  # e2fsck(8): no errors; corrected; corrected, and a mount would be stale


class FileType(StrEnum):
    """The type of an inode, as debugfs prints it."""

    REGULAR = "regular"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    CHAR_DEVICE = "character special"
    """A whiteout, in the upper directory of an overlay."""
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Inode:
    """A file in the image."""

    number: int
    type: FileType
    mode: int
    """The permission bits."""
    uid: int
    gid: int
    size: int

    @property
    def is_directory(self) -> bool:
        return self.type is FileType.DIRECTORY


class Filesystem:
    """An ext4 image, by an open descriptor that the caller owns."""

    def __init__(self, descriptor: int, name: str) -> None:
        """`name` denotes the image in errors."""
        self._descriptor = descriptor
        self._path = f"/proc/self/fd/{descriptor}"
        self._uid = os.fstat(descriptor).st_uid
        self._name = name

    async def check(self) -> None:
        """Replay the journal, and repair with `e2fsck -p`. Raises ImageDamaged."""
        argv = [tool("e2fsck", "e2fsprogs"), "-p", self._path]
        result = await self._read_with(argv, limit_s=_CHECK_LIMIT_S)
        if result.status not in _CORRECTED:
            self._fail(f"e2fsck ended with {result.status}", result.output + result.errors)

    async def walk(self, start: int, names: Sequence[str]) -> list[Inode]:
        """Look up `names` one inside the other, the first in inode `start`.

        The result ends before the first missing name, or after the first non-directory.
        """
        mark = f"mark-{secrets.token_hex(16)}"
        script = [f"cd <{start}>", "pwd"]
        for name in names:
            script += [mark, f"stat {name}", mark, f"cd {name}", "pwd"]
        result = await self._look(script)
        directories, stats = _sections(result.output, f"debugfs: {mark}\n".encode())
        if len(stats) != len(names):
            self._fail("debugfs ended early", result.errors)
        found: list[Inode] = []
        here = start
        for name, directory, stat in zip(names, directories, stats, strict=False):
            self._expect_directory(directory, here, result)
            if (inode := _parse(stat, name)) is None:
                if f"{name}: File not found by ext2_lookup" not in result.errors.decode("latin-1"):
                    self._fail(f"debugfs cannot look up {name}", result.errors)
                break
            found.append(inode)
            here = inode.number
            if not inode.is_directory:
                break
        return found

    async def read(self, inode: Inode, limit_bytes: int) -> bytes:
        """Read a regular file, up to `limit_bytes`. Raises ImageDamaged."""
        argv = [tool("debugfs", "e2fsprogs"), "-R", f"cat <{inode.number}>", self._path]
        result = await self._read_with(argv, max_output=limit_bytes)
        if len(result.output) < min(inode.size, limit_bytes):
            self._fail(f"debugfs cannot read file <{inode.number}>", result.errors)
        return result.output

    async def has_attribute(self, inode: Inode, name: str, value: str) -> bool:
        """Return True if an extended attribute has that value."""
        result = await self._look([f"ea_get <{inode.number}> {name}"])
        return f'{name} ({len(value)}) = "{value}"'.encode() in result.output

    async def edit(self, commands: Sequence[str], *descriptors: int) -> str:
        """Run debugfs commands that write, and return their error output.

        The caller reads back whether they succeeded. `descriptors` are passed on, for
        `/proc/self/fd/N` in a command. Raises: DiskFull if debugfs reports it.
        """
        argv = [tool("debugfs", "e2fsprogs"), "-w", "-f", "-", self._path]
        try:
            result = await write_with(
                argv,
                uid=self._uid,
                descriptors=[self._descriptor, *descriptors],
                script=_script(commands),
                limit_s=_EDIT_LIMIT_S,
            )
        except TimeoutError:
            self._fail(f"debugfs did not end within {_EDIT_LIMIT_S:.0f} s")
        errors = result.errors.decode("utf-8", "replace")
        if any(full in errors for full in _FULL):
            raise DiskFull(
                f"The machine's disk {self._name} is full",
                hint="Remove files in the machine, then try again",
            )
        if "No space left on device" in errors:
            raise DiskFull(f"The host's disk that holds {self._name} is full")
        return harmless(errors)

    async def _look(self, commands: Sequence[str]) -> Finished:
        argv = [tool("debugfs", "e2fsprogs"), "-f", "-", self._path]
        return await self._read_with(argv, script=_script(commands))

    async def _read_with(
        self,
        argv: Sequence[str],
        *,
        script: bytes = b"",
        limit_s: float = _LOOK_LIMIT_S,
        max_output: int = _MAX_OUTPUT,
    ) -> Finished:
        try:
            return await read_with(
                argv,
                uid=self._uid,
                descriptors=[self._descriptor],
                script=script,
                limit_s=limit_s,
                max_output=max_output,
            )
        except TimeoutError:
            self._fail(f"{Path(argv[0]).name} did not end within {limit_s:.0f} s")

    def _expect_directory(self, directory: bytes, inode: int, result: Finished) -> None:
        """Fail if `cd` failed: debugfs then stays where it was, and later results are wrong."""
        match = _PWD.search(directory)
        if match is None or int(match[1]) != inode:
            self._fail(f"debugfs cannot enter directory <{inode}>", result.errors)

    def _fail(self, reason: str, errors: bytes = b"") -> NoReturn:
        text = " ".join(harmless(errors.decode("utf-8", "replace"))[-400:].split())
        raise ImageDamaged(
            f"The disk {self._name} is damaged: {reason}: {text}",
            hint="Start the machine and read its console log, or destroy it and create a new one",
        )


def _script(commands: Sequence[str]) -> bytes:
    return "".join(f"{command}\n" for command in commands).encode("ascii")


def _sections(output: bytes, mark: bytes) -> tuple[list[bytes], list[bytes]]:
    """Split the output of `walk`: each `pwd` before a lookup, and each lookup."""
    parts = output.split(mark)
    return parts[0::2], parts[1::2]


def _parse(section: bytes, name: str) -> Inode | None:
    """Parse the output of `stat`, up to the first text of the guest."""
    match = _HEADER.match(section.removeprefix(f"debugfs: stat {name}\n".encode()))
    if match is None:
        return None
    word = match[2].decode()
    known = word in {kind.value for kind in FileType}
    return Inode(
        number=int(match[1]),
        type=FileType(word) if known else FileType.OTHER,
        mode=int(match[3], 8) & 0o7777,
        uid=int(match[4]),
        gid=int(match[5]),
        size=int(match[6]),
    )
