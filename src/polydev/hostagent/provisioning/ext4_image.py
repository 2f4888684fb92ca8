"""Looking into and editing an ext4 image with e2fsprogs, as a guest left it: hostile.

`offline.py` decides what to write; this module knows the tools. They run as the image's own owner
without any capability, so that a filesystem made to break them gains what its VMM had already.

debugfs follows symlinks when it resolves a path and exits 0 when it fails. So a path is walked one
name at a time, by inode numbers, and nothing counts as done until it was read back. Only names that
`guest_path` let through reach a command. What debugfs prints about a file may hold text of the
guest's (a symlink's target, say): sections of its output are set apart by a word that the guest
cannot know, and only the start of a section is read.
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
_CORRECTED = {0, 1, 2}  # e2fsck(8): nothing to do; corrected; corrected, and a mount would be stale


class FileType(StrEnum):
    """What an inode is, in debugfs' words."""

    REGULAR = "regular"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    CHAR_DEVICE = "character special"
    """In an overlay's upper directory: a whiteout."""
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Inode:
    """A file in the image."""

    number: int
    type: FileType
    mode: int
    """The permission bits alone."""
    uid: int
    gid: int
    size: int

    @property
    def is_directory(self) -> bool:
        return self.type is FileType.DIRECTORY


class Filesystem:
    """An ext4 image, by an open descriptor, for as long as its caller holds it."""

    def __init__(self, descriptor: int, name: str) -> None:
        """`name` is what errors call the image."""
        self._descriptor = descriptor
        self._path = f"/proc/self/fd/{descriptor}"
        self._uid = os.fstat(descriptor).st_uid
        self._name = name

    async def check(self) -> None:
        """Replay the journal, and repair what e2fsck repairs unasked. Raises: ImageDamaged."""
        argv = [tool("e2fsck", "e2fsprogs"), "-p", self._path]
        result = await self._read_with(argv, limit_s=_CHECK_LIMIT_S)
        if result.status not in _CORRECTED:
            self._fail(f"e2fsck ended with {result.status}", result.output + result.errors)

    async def walk(self, start: int, names: Sequence[str]) -> list[Inode]:
        """The inodes of `names`, each looked up in the one before, the first in `start`.

        Ends before the first name that is not there, or after the first that is no directory.
        """
        mark = f"mark-{secrets.token_hex(16)}"
        script = [f"cd <{start}>", "pwd"]
        for name in names:
            script += [mark, f"stat {name}", mark, f"cd {name}", "pwd"]
        result = await self._look(script)
        places, stats = _sections(result.output, f"debugfs: {mark}\n".encode())
        if len(stats) != len(names):
            self._fail("debugfs was cut short", result.errors)
        found: list[Inode] = []
        here = start
        for name, place, stat in zip(names, places, stats, strict=False):
            self._expect_place(place, here, result)
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
        """The content of a regular file, cut off after `limit_bytes`. Raises: ImageDamaged."""
        argv = [tool("debugfs", "e2fsprogs"), "-R", f"cat <{inode.number}>", self._path]
        result = await self._read_with(argv, max_output=limit_bytes)
        if len(result.output) < min(inode.size, limit_bytes):
            self._fail(f"debugfs cannot read file <{inode.number}>", result.errors)
        return result.output

    async def has_attribute(self, inode: Inode, name: str, value: str) -> bool:
        """True if an extended attribute has that value."""
        result = await self._look([f"ea_get <{inode.number}> {name}"])
        return f'{name} ({len(value)}) = "{value}"'.encode() in result.output

    async def edit(self, commands: Sequence[str], *descriptors: int) -> str:
        """Run debugfs commands that write. What they said is returned; whether they did it, only
        looking tells. `descriptors` are passed on, for `/proc/self/fd/N` in a command.

        Raises: DiskFull, when debugfs says that it found no room.
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
        words = result.errors.decode("utf-8", "replace")
        if any(full in words for full in _FULL):
            raise DiskFull(
                f"The machine's disk {self._name} is full",
                hint="Remove files in the machine, then try again",
            )
        if "No space left on device" in words:
            raise DiskFull(f"The host's disk that holds {self._name} is full")
        return harmless(words)

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

    def _expect_place(self, place: bytes, inode: int, result: Finished) -> None:
        """debugfs stays where it was when `cd` fails; then nothing that follows can be believed."""
        match = _PWD.search(place)
        if match is None or int(match[1]) != inode:
            self._fail(f"debugfs cannot enter directory <{inode}>", result.errors)

    def _fail(self, what: str, words: bytes = b"") -> NoReturn:
        text = " ".join(harmless(words.decode("utf-8", "replace"))[-400:].split())
        raise ImageDamaged(
            f"The disk {self._name} is damaged: {what}: {text}",
            hint="Start the machine and look at its console, or destroy it and make a new one",
        )


def _script(commands: Sequence[str]) -> bytes:
    return "".join(f"{command}\n" for command in commands).encode("ascii")


def _sections(output: bytes, mark: bytes) -> tuple[list[bytes], list[bytes]]:
    """What `walk`'s script printed: what `pwd` said before each lookup, and each lookup."""
    parts = output.split(mark)
    return parts[0::2], parts[1::2]


def _parse(section: bytes, name: str) -> Inode | None:
    """What `stat` said of a file: only the lines before anything that the guest wrote."""
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
