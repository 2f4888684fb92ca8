"""The three places in a machine's folder where its QEMU and the agent meet.

The agent makes them and hands QEMU the listening ends: QEMU needs no right to make a file there,
and the agent's first connection waits in the queue, with nothing to poll for. Paths go through a
descriptor of the folder, because the address of a Unix socket holds 107 bytes and a folder's path
may be longer.
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
    """What QEMU is given: two listening sockets, and a pipe to complain into."""

    qmp: socket.socket
    console: socket.socket
    errors: int


@contextmanager
def create_endpoints(folder: Path) -> Iterator[QemuEndpoints]:
    """Make the three places anew; our copies of QEMU's ends are closed afterwards."""
    remove_files(folder)
    # QEMU holds both ends of the pipe and does not wait: with no agent there, or one that is busy,
    # what it says beyond the pipe's 64 KiB is lost, and it goes on.
    os.mkfifo(folder / ERROR_FIFO, 0o600)
    errors = os.open(folder / ERROR_FIFO, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        with _listening(folder, QMP_SOCKET) as qmp, _listening(folder, CONSOLE_SOCKET) as console:
            yield QemuEndpoints(qmp, console, errors)
    except BaseException:
        remove_files(folder)
        raise
    finally:
        os.close(errors)


def open_errors(folder: Path) -> int:
    """The agent's end of the pipe. Raises: OSError."""
    return os.open(folder / ERROR_FIFO, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


async def connect(folder: Path, name: str) -> socket.socket:
    """Connect to one of the sockets. Raises: OSError, TimeoutError."""
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connected.setblocking(False)
    try:
        async with asyncio.timeout(_CONNECT_LIMIT_S):
            with _opened(folder) as path:
                await asyncio.get_running_loop().sock_connect(connected, f"{path}/{name}")
    except BaseException:
        connected.close()
        raise
    return connected


def remove_files(folder: Path) -> None:
    """Remove what a VMM leaves in its machine's folder, all but its logs."""
    half_written = (f".{IDENTITY_FILE}.new", ".console.log.new", ".error.log.new")
    for name in (QMP_SOCKET, CONSOLE_SOCKET, ERROR_FIFO, IDENTITY_FILE, *half_written):
        with suppress(OSError):
            (folder / name).unlink()


def _listening(folder: Path, name: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _opened(folder) as path:
            listener.bind(f"{path}/{name}")
        (folder / name).chmod(0o600)
        listener.listen(1)
    except BaseException:
        listener.close()
        raise
    return listener


@contextmanager
def _opened(folder: Path) -> Iterator[str]:
    """A short path to a folder."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
