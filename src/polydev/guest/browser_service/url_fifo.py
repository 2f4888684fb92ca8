"""FIFO for the URL that a CLI wants to open.

The CLI runs `open-url` as its BROWSER, which writes to the FIFO. Only root can write; input is
still bounded here and validated in `login`.
"""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

from .settings import URL_CHARACTERS


class UrlFifo:
    """Call `deliver` with each line written to the FIFO."""

    def __init__(self, path: Path, deliver: Callable[[str], None]) -> None:
        self.path = path
        self._deliver = deliver
        self._partial = b""
        path.unlink(missing_ok=True)
        os.mkfifo(path, 0o600)
        # Open for writing too, so that no end of file occurs between two writers.
        self._descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        asyncio.get_running_loop().add_reader(self._descriptor, self._read)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)
        self.path.unlink(missing_ok=True)

    def _read(self) -> None:
        try:
            chunk = os.read(self._descriptor, 64 * 1024)
        except BlockingIOError:
            return
        *lines, self._partial = (self._partial + chunk).split(b"\n")
        self._partial = self._partial[-URL_CHARACTERS:]
        for line in lines:
            if line and len(line) <= URL_CHARACTERS:
                self._deliver(line.decode("utf-8", "replace"))
