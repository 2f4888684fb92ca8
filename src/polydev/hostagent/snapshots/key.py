"""The key to the memory of machines that sleep: it lies where a restart of the host leaves nothing.

`hibernation.py` asks for it. A disk that is stolen, or read in a backup, does not give away what a
machine had in memory: credentials, what was said. The price is that a host that was restarted
cannot wake its machines; it boots their disks. All functions block.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from polydev.shared.atomic_files import write_whole
from polydev.shared.errors import BadSettings

KEY_FILE = "memory.key"
_KEY_BYTES = 32
_FOLDERS = (Path("/run"), Path("/dev/shm"))  # noqa: S108 - whose they are is checked
_NAME = "polydev-keys"
_IN_MEMORY = frozenset({"tmpfs", "ramfs"})


@dataclass(frozen=True, slots=True)
class MemoryKey:
    """`id` names it without telling anything of it."""

    secret: bytes = field(repr=False)
    id: str

    @classmethod
    def of(cls, secret: bytes) -> Self:
        return cls(secret, hashlib.sha256(b"polydev memory key\0" + secret).hexdigest()[:16])


class MemoryKeys:
    """The key of one host agent."""

    def __init__(self, folder: Path | None) -> None:
        """`folder`: None where this host has no place in memory."""
        self._folder = folder
        self._making = threading.Lock()

    @classmethod
    def for_state(cls, state_dir: Path, folder: Path | None = None) -> Self:
        """In `folder`, or else in a place of its own in the first of the host's that is memory."""
        name = hashlib.sha256(str(state_dir.resolve()).encode()).hexdigest()[:16]
        if folder is None:
            folder = next((path / _NAME for path in _FOLDERS if _is_in_memory(path)), None)
        return cls(folder / name if folder else None)

    def known(self) -> MemoryKey | None:
        """The key, if there is one since the host was started."""
        if self._folder is None:
            return None
        try:
            secret = (self._folder / KEY_FILE).read_bytes()
        except OSError:
            return None
        return MemoryKey.of(secret) if len(secret) == _KEY_BYTES else None

    def made(self) -> MemoryKey:
        """The key; made if there is none, and the same for all who ask at once.

        Raises: BadSettings, OSError.
        """
        with self._making:
            return self.known() or self._new()

    def _new(self) -> MemoryKey:
        if self._folder is None:
            raise BadSettings(
                "This host has no folder in memory, and a machine's memory is not to be written to "
                "a disk beside the key to it",
                hint="Mount a tmpfs at /run, or name one in POLYDEV_MEMORY_KEY_DIR",
            )
        for folder in (self._folder.parent, self._folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _require_ours(folder)
        secret = os.urandom(_KEY_BYTES)
        write_whole(self._folder / KEY_FILE, secret, durable=False)
        return MemoryKey.of(secret)


def _require_ours(folder: Path) -> None:
    """`/dev/shm` is everybody's: another user may have made the folder before us."""
    state = folder.lstat()
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.geteuid():
        raise BadSettings(
            f"{folder}, where the key to sleeping machines is to lie, belongs to somebody else",
            hint=f"Remove {folder}, or name another folder in POLYDEV_MEMORY_KEY_DIR",
        )


def _is_in_memory(path: Path) -> bool:
    """Source: proc_pid_mountinfo(5): mount point and, behind the dash, the filesystem's type."""
    best, kind = "", ""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        place = before.split()[4]
        if len(place) >= len(best) and path.is_relative_to(place):
            best, kind = place, after.split()[0]
    return kind in _IN_MEMORY
