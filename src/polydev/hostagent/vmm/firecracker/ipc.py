"""The three pipes in a machine's folder where its Firecracker and the agent meet.

Console, complaints and metrics each come through a pipe that both sides hold open and neither waits
for: with no agent there, or one that is busy, what is said beyond the pipe's 64 KiB is lost, and
the VMM goes on. Nothing that it writes to is on a disk.
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
    """Make the pipes anew, for a VMM of user `uid`; the descriptors are closed afterwards."""
    remove_files(folder)
    try:
        for name in _FIFOS:
            os.mkfifo(folder / name, 0o600)
            os.chown(folder / name, uid, uid)
        with open_endpoints(folder) as ends:
            yield ends
    except BaseException:
        remove_files(folder)
        raise


@contextmanager
def open_endpoints(folder: Path) -> Iterator[FirecrackerEndpoints]:
    """The pipes of a VMM that runs. Raises: OSError."""
    with ExitStack() as stack:
        descriptors = []
        for name in _FIFOS:
            flags = os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptors.append(os.open(folder / name, flags))
            stack.callback(os.close, descriptors[-1])
        yield FirecrackerEndpoints(*descriptors)


def remove_files(folder: Path) -> None:
    """Remove what a VMM leaves in its machine's folder, all but its logs and the jail."""
    for name in (*_FIFOS, IDENTITY_FILE, *_HALF_WRITTEN):
        with suppress(OSError):
            (folder / name).unlink()
