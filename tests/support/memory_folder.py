"""Temporary folders in memory, where what is made durable costs no time.

A process that is killed loses nothing that it wrote, so tests that kill prove the same there. Only
a test of real disks needs one.
"""

from __future__ import annotations

import os
from functools import cache

_MEMORY = "/dev/shm"
_NEEDED_BYTES = 2 * 1024**3


@cache
def memory_folder() -> str | None:
    """Where to make temporary folders; None, the usual place, if memory has no room for them."""
    try:
        room = os.statvfs(_MEMORY)
    except OSError:
        return None
    return _MEMORY if room.f_bavail * room.f_frsize >= _NEEDED_BYTES else None
