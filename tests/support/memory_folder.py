"""Temporary folders in memory, where an fsync costs no time.

A process that is killed loses nothing that it wrote, so tests that kill prove the same there. Only
tests of real machines need a disk.
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
    """Parent of temporary folders; None, the usual one, if memory has no room for them."""
    try:
        there = os.statvfs(_MEMORY)
    except OSError:
        return None
    is_large = there.f_bavail * there.f_frsize >= _NEEDED_BYTES
    return _MEMORY if is_large and not there.f_flag & os.ST_NOEXEC else None


@contextmanager
def a_folder() -> Iterator[Path]:
    """A new folder, which is removed afterwards."""
    where = memory_folder()
    with tempfile.TemporaryDirectory(
        prefix="polydev-test-", dir=where, ignore_cleanup_errors=True
    ) as name:
        yield Path(name)
