"""The pipes between Firecracker and the agent, in the machine's folder.

Console, errors and metrics each have a pipe that both sides hold open and neither waits for: if no
agent reads, output beyond the pipe's 64 KiB is lost. The VMM writes to no disk.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from polydev.hostagent.vmm.process import IDENTITY_FILE

CONSOLE_FIFO = "console.fifo"
ERROR_FIFO = "errors.fifo"
METRICS_FIFO = "metrics.fifo"
_FIFOS = (CONSOLE_FIFO, ERROR_FIFO, METRICS_FIFO)
_HALF_WRITTEN = (".vmm.json.new", ".console.log.new", ".error.log.new", ".metrics.log.new")


@dataclass(frozen=True, slots=True)
class FirecrackerEndpoints:
    """Descriptors of the pipes, open both ways and non-blocking."""

    console: int
    errors: int
    metrics: int


@contextmanager
def create_endpoints(folder: Path, uid: int) -> Iterator[FirecrackerEndpoints]:
    """Create the pipes for user `uid`; close the descriptors afterwards."""
    remove_files(folder)
    try:
        for name in _FIFOS:
            os.mkfifo(folder / name, 0o600)
            os.chown(folder / name, uid, uid)
        with open_endpoints(folder) as endpoints:
            yield endpoints
    except BaseException:
        remove_files(folder)
        raise


@contextmanager
def open_endpoints(folder: Path) -> Iterator[FirecrackerEndpoints]:
    """Open the pipes of a running VMM. Raises: OSError."""
    with ExitStack() as stack:
        descriptors = []
        for name in _FIFOS:
            flags = os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptors.append(os.open(folder / name, flags))
            stack.callback(os.close, descriptors[-1])
        yield FirecrackerEndpoints(*descriptors)


def remove_files(folder: Path) -> None:
    """Remove what a VMM leaves in its machine's folder, except its logs and jail."""
    for name in (*_FIFOS, IDENTITY_FILE, *_HALF_WRITTEN):
        with suppress(OSError):
            (folder / name).unlink()
