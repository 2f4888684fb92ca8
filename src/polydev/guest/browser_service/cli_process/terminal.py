"""Command in a pseudo-terminal. Its output is always drained and bounded in memory.

It does not answer terminal queries.
"""

import asyncio
import contextlib
import fcntl
import os
import pty
import struct
import termios
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..settings import OUTPUT_BYTES
from .processes import end_group

COLUMNS, LINES = 120, 40
CHUNK_BYTES = 64 * 1024


class Terminal:
    """Running command. Calls `on_output` after each new piece of output."""

    def __init__(
        self, process: asyncio.subprocess.Process, master: int, on_output: Callable[[], None]
    ) -> None:
        self._process = process
        self._master = master
        self._on_output = on_output
        self._kept = bytearray()
        self._drained = asyncio.Event()
        os.set_blocking(master, False)
        asyncio.get_running_loop().add_reader(master, self._drain)

    @classmethod
    async def start(
        cls,
        argv: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        on_output: Callable[[], None],
    ) -> "Terminal":
        """Start a command. Raises OSError."""
        master, slave = pty.openpty()
        try:
            fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
            # setsid(1) makes it the controlling terminal: closing it hangs up all processes.
            process = await asyncio.create_subprocess_exec(
                *("setsid", "--ctty", *argv),
                stdin=slave,
                stdout=slave,
                stderr=slave,
                env=environment,
                cwd=folder,
            )
        except BaseException:
            os.close(master)
            raise
        finally:
            os.close(slave)
        return cls(process, master, on_output)

    @property
    def output(self) -> bytes:
        """Last OUTPUT_BYTES of its output."""
        return bytes(self._kept)

    def type(self, text: str) -> None:
        """Type a short text. Raises OSError."""
        if self._drained.is_set():
            raise OSError("the terminal is closed")
        typed = text.encode()
        if os.write(self._master, typed) != len(typed):
            raise OSError("the terminal accepted only part of the text")

    async def wait(self) -> str:
        """Wait for exit and the end of output. Returns the reason of a failure, or nothing."""
        code = await self._process.wait()
        # A grandchild may keep the terminal open, and then its output has no end.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._drained.wait(), 1)
        return f"it ended with exit code {code}" if code else ""

    async def end(self) -> None:
        """End the command and its children, with SIGTERM first. Idempotent."""
        await end_group(self._process)
        self._close()

    def _drain(self) -> None:
        try:
            chunk = os.read(self._master, CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:  # EIO: no process has the terminal open
            chunk = b""
        if not chunk:
            self._close()
            return
        self._kept += chunk
        del self._kept[:-OUTPUT_BYTES]
        self._on_output()

    def _close(self) -> None:
        if not self._drained.is_set():
            self._drained.set()
            asyncio.get_running_loop().remove_reader(self._master)
            os.close(self._master)
