"""What a stand-in guest has in memory, and a snapshot of it: two files as the real VMM's.

The guest's files lie in `/guest`, in the jail, which is in memory; they end with the process. The
memory file has the guest's whole size and is nearly all zeros, as a real one's.
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
"""Where in the guest's memory its files are."""
_SIZE = struct.Struct("<Q")
_MIB = 1024 * 1024


def save(state_path: str, memory_path: str, kept: dict[str, Any]) -> None:
    """Write both files. Raises: OSError."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.add(GUEST, arcname=".")
    with Path(memory_path).open("wb") as file:
        file.truncate(kept["sizes"]["mem_size_mib"] * _MIB)
        file.seek(_AT)
        file.write(_SIZE.pack(len(content.getvalue())) + content.getvalue())
    Path(state_path).write_text(json.dumps(kept))


def load(state_path: str, memory_path: str) -> dict[str, Any]:
    """Take both files in. Raises: OSError, ValueError, KeyError for what is no snapshot."""
    kept: dict[str, Any] = json.loads(Path(state_path).read_bytes())
    size = kept["sizes"]["mem_size_mib"] * _MIB
    if Path(memory_path).stat().st_size != size:
        raise ValueError("the memory file has another size")
    with Path(memory_path).open("rb") as file:
        file.seek(_AT)
        (length,) = _SIZE.unpack(file.read(_SIZE.size))
        content = io.BytesIO(file.read(length))
    try:
        with tarfile.open(fileobj=content) as archive:
            archive.extractall(GUEST)  # noqa: S202 - a stand-in wrote it, in its own jail
    except tarfile.TarError as error:
        raise ValueError(str(error)) from error
    return kept
