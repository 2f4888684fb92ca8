"""What a saved guest needs to find again: Firecracker, processor, kernels, files, and its machine.

`driver.py` answers with it. One claim a line, `name: value`, so that two of them can be compared in
words. What a machine is called and where it is in the network is not in it. Blocking.
Source: docs/snapshotting/versioning.md and snapshot-support.md of Firecracker.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from polydev.errors import MissingImage
from polydev.hostd.vmm.firecracker.configuration import KERNEL_LINE, LAYOUT
from polydev.hostd.vmm.vmm import LaunchSpec

_PROCESSOR = ("vendor_id", "model name", "stepping", "microcode", "flags")


def fingerprint(spec: LaunchSpec, version: str) -> str:
    """Raises: MissingImage."""
    claims = {
        "Firecracker": version,
        "host kernel": os.uname().release,
        "processor": _processor(),
        "kernel": _file(spec.kernel),
        "initramfs": _file(spec.initramfs),
        "golden image": _file(spec.root_image),
        "disk": f"{_state(spec.disk).st_size >> 20} MiB",
        "memory": f"{spec.memory_mib} MiB",
        "processors": str(spec.vcpus),
        "devices": _digest([str(LAYOUT), KERNEL_LINE]),
    }
    return "".join(f"{name}: {value}\n" for name, value in claims.items())


def _file(path: Path) -> str:
    """A file by place and metadata: golden images are replaced, never changed."""
    state = _state(path)
    return f"{path} {state.st_ino}.{state.st_size}.{state.st_mtime_ns}"


def _state(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except FileNotFoundError:
        raise MissingImage(f"{path} is missing") from None


def _processor() -> str:
    """The first one's model and what it can do. Source: proc(5), `/proc/cpuinfo`."""
    first = Path("/proc/cpuinfo").read_text("utf-8", "replace").split("\n\n", 1)[0]
    lines = (line.partition(":") for line in first.splitlines())
    fields = {name.strip(): value.strip() for name, _, value in lines}
    words = [fields.get(name, "") for name in _PROCESSOR]
    return f"{fields.get('model name', 'unknown')} {_digest(words)}"


def _digest(words: list[str]) -> str:
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:16]
