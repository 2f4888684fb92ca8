"""Archive of the logs of machines whose creation failed.

It keeps a limited number of them, each of a limited size: a guest prints as much as it likes. The
methods block.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from polydev.hostagent.system.logs import end_of

KEEP_COUNT = 50
KEEP_BYTES = 256 * 1024
_NAMES = ("console.log", "error.log")


class LogArchive:
    """The folder `<logs_dir>/machines`, with a folder per failed machine."""

    def __init__(self, folder: Path, keep_count: int = KEEP_COUNT) -> None:
        self._folder = folder
        self._keep_count = keep_count

    def console_log(self, vm_id: str) -> Path:
        return self._folder / vm_id / _NAMES[0]

    def error_log(self, vm_id: str) -> Path:
        return self._folder / vm_id / _NAMES[1]

    def add(self, vm_id: str, console_log: Path, error_log: Path) -> None:
        """Copy the ends of a machine's logs, and remove the oldest archive. Raises OSError."""
        target = self._folder / vm_id
        target.mkdir(parents=True, exist_ok=True, mode=0o750)
        (target / _NAMES[0]).write_bytes(end_of(console_log, KEEP_BYTES))
        (target / _NAMES[1]).write_bytes(end_of(error_log, KEEP_BYTES))
        os.utime(target)
        self._remove_oldest()

    def remove(self, vm_id: str) -> None:
        """Remove the logs of a machine. Idempotent. Raises OSError."""
        with suppress(FileNotFoundError):
            shutil.rmtree(self._folder / vm_id)

    def _remove_oldest(self) -> None:
        folders = sorted(self._folder.iterdir(), key=lambda path: path.stat().st_mtime)
        for path in folders[: -self._keep_count]:
            shutil.rmtree(path, ignore_errors=True)
