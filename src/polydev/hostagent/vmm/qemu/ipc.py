"""The sockets and the pipe between QEMU and the agent, in the machine's folder.

The agent creates them and passes QEMU the listening ends: QEMU needs no permission to create files
there, and the agent's first connection waits in the backlog, with nothing to poll for. Paths go
through a descriptor of the folder, because a Unix socket address holds 107 bytes and the folder's
path may be longer.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from polydev.hostagent.vmm.process import IDENTITY_FILE

QMP_SOCKET = "qmp.sock"
CONSOLE_SOCKET = "console.sock"
ERROR_FIFO = "errors.fifo"

_CONNECT_LIMIT_S = 30


@dataclass(frozen=True, slots=True)
class QemuEndpoints:
    """QEMU's ends: two listening sockets, and a pipe for error output."""

    qmp: socket.socket
    console: socket.socket
    errors: int


@contextmanager
def create_endpoints(folder: Path) -> Iterator[QemuEndpoints]:
    """Create sockets and pipe; close our copies of QEMU's ends afterwards."""
    remove_files(folder)
    # QEMU holds both ends of the pipe and never blocks on it: if no agent reads, output beyond
    # the pipe's 64 KiB is lost.
    os.mkfifo(folder / ERROR_FIFO, 0o600)
    errors = os.open(folder / ERROR_FIFO, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        with _listen(folder, QMP_SOCKET) as qmp, _listen(folder, CONSOLE_SOCKET) as console:
            yield QemuEndpoints(qmp, console, errors)
    except BaseException:
        remove_files(folder)
        raise
    finally:
        os.close(errors)


def open_errors(folder: Path) -> int:
    """Open the agent's end of the pipe. Raises: OSError."""
    return os.open(folder / ERROR_FIFO, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


async def connect(folder: Path, name: str) -> socket.socket:
    """Connect to one of the sockets. Raises: OSError, TimeoutError."""
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connected.setblocking(False)
    try:
        async with asyncio.timeout(_CONNECT_LIMIT_S):
            with _short_path(folder) as path:
                await asyncio.get_running_loop().sock_connect(connected, f"{path}/{name}")
    except BaseException:
        connected.close()
        raise
    return connected


def remove_files(folder: Path) -> None:
    """Remove what a VMM leaves in its machine's folder, except its logs."""
    half_written = (f".{IDENTITY_FILE}.new", ".console.log.new", ".error.log.new")
    for name in (QMP_SOCKET, CONSOLE_SOCKET, ERROR_FIFO, IDENTITY_FILE, *half_written):
        with suppress(OSError):
            (folder / name).unlink()


def _listen(folder: Path, name: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _short_path(folder) as path:
            listener.bind(f"{path}/{name}")
        (folder / name).chmod(0o600)
        listener.listen(1)
    except BaseException:
        listener.close()
        raise
    return listener


@contextmanager
def _short_path(folder: Path) -> Iterator[str]:
    """Yield a short path to a folder."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
