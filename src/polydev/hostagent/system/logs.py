"""Read the logs of machines: bounded, and safe to print on a terminal.

Guest output is untrusted. Control characters could overwrite a user's screen, so only line ends and
tabs remain.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

MAX_TAIL_BYTES = 1024 * 1024

_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_ESCAPE = re.compile(
    "\x1b(?:\\[[0-?]*[ -/]*[@-~]"  # control sequences: colours, movements
    "|\\][^\x07\x1b]*(?:\x07|\x1b\\\\)?"  # titles, clipboard, links
    "|[ -/]+[0-~]|[0-Z\\\\^-~])"  # the rest
)


def tail(path: Path, tail_bytes: int) -> str:
    """Return the last `tail_bytes` of a log as harmless text; empty if missing. Blocks."""
    return harmless(end_of(path, min(tail_bytes, MAX_TAIL_BYTES)).decode("utf-8", "replace"))


def end_of(path: Path, size: int) -> bytes:
    """Return the last `size` bytes of a regular file; empty for anything else. Blocks.

    It follows no symlink and waits for no pipe: a machine's folder is not trusted.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    with os.fdopen(descriptor, "rb") as file:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            return b""
        file.seek(max(0, state.st_size - size))
        return file.read(size)


def harmless(text: str) -> str:
    """Strip escape sequences, direction marks and control characters but \\n and \\t."""
    return _UNSAFE.sub("", _ESCAPE.sub("", text.replace("\r\n", "\n").replace("\r", "\n")))
