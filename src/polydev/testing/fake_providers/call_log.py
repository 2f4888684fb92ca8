"""The log of calls to the fake providers: JSON lines, for tests.

It never contains a token, code, query or password: a bearer token appears only as the start of its
SHA-256, enough to distinguish two tokens.
"""

import hashlib
import json
import os
import time
from pathlib import Path


class CallLog:
    """Appends JSON lines to a file that only its owner may read."""

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._file = os.fdopen(descriptor, "a", encoding="utf-8", buffering=1)

    def record(self, event: str, **facts: str | int | None) -> None:
        line = {"at": round(time.time(), 3), "event": event, **facts}
        self._file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        self._file.close()


def fingerprint(token: str) -> str:
    """Return the first 12 hexadecimal digits of a token's SHA-256."""
    return hashlib.sha256(token.encode()).hexdigest()[:12]
