"""Console and error logs of machines that failed, kept after the machine is gone.

`machines.py` keeps them when it undoes a machine, so that a person can still read why. Bounded in
count and size: a guest prints as much as it likes. Its methods block.
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
    """The folder `<logs_dir>/machines`, with a folder per machine that failed."""

    def __init__(self, folder: Path, keep_count: int = KEEP_COUNT) -> None:
        self._folder = folder
        self._keep_count = keep_count

    def console_log(self, vm_id: str) -> Path:
        return self._folder / vm_id / _NAMES[0]

    def error_log(self, vm_id: str) -> Path:
        return self._folder / vm_id / _NAMES[1]

    def add(self, vm_id: str, console_log: Path, error_log: Path) -> None:
        """Copy the ends of a machine's logs; forget the oldest of the others. Raises OSError."""
        target = self._folder / vm_id
        target.mkdir(parents=True, exist_ok=True, mode=0o750)
        (target / _NAMES[0]).write_bytes(end_of(console_log, KEEP_BYTES))
        (target / _NAMES[1]).write_bytes(end_of(error_log, KEEP_BYTES))
        os.utime(target)
        self._remove_oldest()

    def remove(self, vm_id: str) -> None:
        """Remove what is kept of a machine; done also when nothing is. Raises OSError."""
        with suppress(FileNotFoundError):
            shutil.rmtree(self._folder / vm_id)

    def _remove_oldest(self) -> None:
        folders = sorted(self._folder.iterdir(), key=lambda path: path.stat().st_mtime)
        for path in folders[: -self._keep_count]:
            shutil.rmtree(path, ignore_errors=True)
