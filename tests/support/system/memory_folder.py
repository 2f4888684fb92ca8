"""Temporary folders in memory, where fsync costs nothing.

A killed process loses nothing that it wrote there, so tests that kill processes prove the same.
Only tests of real machines need a disk.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

_MEMORY = "/dev/shm"
_NEEDED_BYTES = 2 * 1024**3


@cache
def memory_folder() -> str | None:
    """The parent of temporary folders; None (the default) if memory is short."""
    try:
        there = os.statvfs(_MEMORY)
    except OSError:
        return None
    is_large = there.f_bavail * there.f_frsize >= _NEEDED_BYTES
    return _MEMORY if is_large and not there.f_flag & os.ST_NOEXEC else None


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Create a folder; remove it afterwards."""
    where = memory_folder()
    with tempfile.TemporaryDirectory(
        prefix="polydev-test-", dir=where, ignore_cleanup_errors=True
    ) as name:
        yield Path(name)
