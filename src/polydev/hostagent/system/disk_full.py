"""Translate the kernel's errors of a full disk into `DiskFull`."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from polydev.shared.errors import DiskFull


@contextmanager
def raising_disk_full(folder: Path) -> Iterator[None]:
    """Raise DiskFull for ENOSPC and EDQUOT while writing a machine's files in `folder`."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DiskFull(
                f"No room for a machine's files in {folder}",
                hint="Free some space there, or destroy machines that are no longer needed",
            ) from error
        raise
