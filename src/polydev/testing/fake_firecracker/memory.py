"""The fake guest's memory, and its snapshot: two files like the real VMM's.

The guest's files lie in `/guest`, in the jail's tmpfs; they end with the process. The memory file
has the guest's full size and is mostly zeros, like a real one.
"""

from __future__ import annotations

import io
import json
import struct
import tarfile
from pathlib import Path
from typing import Any

GUEST = Path("/guest")
_AT = 3 * 1024 * 1024 + 4096
"""Offset of the guest's files in its memory."""
_SIZE = struct.Struct("<Q")
_MIB = 1024 * 1024


def save(state_path: str, memory_path: str, saved: dict[str, Any]) -> None:
    """Write both files. Raises: OSError."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.add(GUEST, arcname=".")
    with Path(memory_path).open("wb") as file:
        file.truncate(saved["sizes"]["mem_size_mib"] * _MIB)
        file.seek(_AT)
        file.write(_SIZE.pack(len(content.getvalue())) + content.getvalue())
    Path(state_path).write_text(json.dumps(saved))


def load(state_path: str, memory_path: str) -> dict[str, Any]:
    """Load both files. Raises: OSError, ValueError, KeyError for an invalid snapshot."""
    saved: dict[str, Any] = json.loads(Path(state_path).read_bytes())
    size = saved["sizes"]["mem_size_mib"] * _MIB
    if Path(memory_path).stat().st_size != size:
        raise ValueError("the memory file has another size")
    with Path(memory_path).open("rb") as file:
        file.seek(_AT)
        (length,) = _SIZE.unpack(file.read(_SIZE.size))
        content = io.BytesIO(file.read(length))
    try:
        with tarfile.open(fileobj=content) as archive:
            archive.extractall(GUEST)  # noqa: S202 - written by a fake, in its own jail
    except tarfile.TarError as error:
        raise ValueError(str(error)) from error
    return saved
