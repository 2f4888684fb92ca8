"""Reading the logs of machines: bounded, and safe to show on a terminal.

`server.py` answers with them. Whatever a guest prints is untrusted: control characters would let it
write over a person's screen, so only line ends and tabs stay.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

MAX_TAIL_BYTES = 1024 * 1024

_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_ESCAPE = re.compile("\x1b(?:\\[[0-?]*[ -/]*[@-~]|\\][^\x07\x1b]*(?:\x07|\x1b\\\\)?|[@-Z\\\\^_])")


def tail(path: Path, tail_bytes: int) -> str:
    """The last `tail_bytes` of a log as harmless text; empty when there is none. Blocking.

    The log is opened without following a symlink: its folder belongs to an unprivileged VMM.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    with os.fdopen(descriptor, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - min(tail_bytes, MAX_TAIL_BYTES)))
        return harmless(file.read(MAX_TAIL_BYTES).decode("utf-8", "replace"))


def harmless(text: str) -> str:
    """Text without escape sequences, direction marks and control characters but \\n and \\t."""
    return _UNSAFE.sub("", _ESCAPE.sub("", text.replace("\r\n", "\n").replace("\r", "\n")))
