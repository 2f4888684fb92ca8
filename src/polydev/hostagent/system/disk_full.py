"""Says that the host's disk is full in our own words.

Whatever in the host agent writes a machine's files wraps it; the kernel's error goes no further.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from polydev.shared.errors import DiskFull


@contextmanager
def room_in(folder: Path) -> Iterator[None]:
    """Raises: DiskFull for ENOSPC and EDQUOT; every other error as it is."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DiskFull(
                f"No room for a machine's files in {folder}",
                hint="Free some space there, or destroy machines that nobody needs",
            ) from error
        raise
