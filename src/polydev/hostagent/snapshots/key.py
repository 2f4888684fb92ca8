"""The key to hibernated machines' memory, kept in RAM only.

A stolen disk or a backup reveals nothing that a machine had in memory: credentials, conversations.
The price: after a restart of the host its machines cannot be resumed; they boot from their disks.
All functions block.
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
from polydev.shared.hints import Hint

KEY_FILE = "memory.key"
_KEY_BYTES = 32
_FOLDERS = (Path("/run"), Path("/dev/shm"))  # noqa: S108 - the owner is checked
_NAME = "polydev-keys"
_IN_MEMORY = frozenset({"tmpfs", "ramfs"})


@dataclass(frozen=True, slots=True)
class MemoryKey:
    """A key; `id` identifies it without revealing it."""

    secret: bytes = field(repr=False)
    id: str

    @classmethod
    def from_secret(cls, secret: bytes) -> Self:
        return cls(secret, hashlib.sha256(b"polydev memory key\0" + secret).hexdigest()[:16])


class MemoryKeys:
    """The key of one host agent."""

    def __init__(self, folder: Path | None) -> None:
        """`folder` is None on a host without a folder in memory."""
        self._folder = folder
        self._lock = threading.Lock()

    @classmethod
    def for_state(cls, state_dir: Path, folder: Path | None = None) -> Self:
        """Use `folder`, or a subfolder of the host's first tmpfs."""
        name = hashlib.sha256(str(state_dir.resolve()).encode()).hexdigest()[:16]
        if folder is None:
            folder = next((path / _NAME for path in _FOLDERS if _is_in_memory(path)), None)
        return cls(folder / name if folder else None)

    def load(self) -> MemoryKey | None:
        """Return the key, if it was created since the host started."""
        if self._folder is None:
            return None
        try:
            secret = (self._folder / KEY_FILE).read_bytes()
        except OSError:
            return None
        return MemoryKey.from_secret(secret) if len(secret) == _KEY_BYTES else None

    def load_or_create(self) -> MemoryKey:
        """Return the key, and create it if necessary; the same for all callers.

        Raises: BadSettings, OSError.
        """
        with self._lock:
            return self.load() or self._new()

    def _new(self) -> MemoryKey:
        if self._folder is None:
            raise BadSettings(
                "This host has no tmpfs for the key, and a machine's memory must not be stored "
                "on a disk beside its key",
                hint=Hint.SET_MEMORY_KEY_DIR.text(),
            )
        for folder in (self._folder.parent, self._folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _require_own(folder)
        secret = os.urandom(_KEY_BYTES)
        write_whole(self._folder / KEY_FILE, secret, durable=False)
        return MemoryKey.from_secret(secret)


def _require_own(folder: Path) -> None:
    """`/dev/shm` is world-writable: another user may have created the folder first."""
    state = folder.lstat()
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.geteuid():
        raise BadSettings(
            f"{folder}, the folder of the key to hibernated machines, belongs to another user",
            hint=Hint.REPLACE_MEMORY_KEY_DIR.text(folder=folder),
        )


def _is_in_memory(path: Path) -> bool:
    """Source: proc_pid_mountinfo(5): mount point and, after the dash, filesystem type."""
    best, kind = "", ""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        mount_point = before.split()[4]
        if len(mount_point) >= len(best) and path.is_relative_to(mount_point):
            best, kind = mount_point, after.split()[0]
    return kind in _IN_MEMORY
