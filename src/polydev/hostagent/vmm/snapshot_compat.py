"""What a saved guest needs to find again, whichever VMM it ran under.

Drivers answer with it. One claim a line, `name: value`, so that two of them can be compared in
words (`snapshots.difference`). What a machine is called and where it is in the network is not in
it: the guest carries that in its own memory. Blocking.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from polydev.hostagent.vmm.contract import LaunchSpec
from polydev.shared.errors import MissingImage


def fingerprint(
    spec: LaunchSpec, vmm: Mapping[str, str], processor: Sequence[str], devices: Sequence[str]
) -> str:
    """The claims of a driver, `vmm`, and those of the machine that it starts.

    `processor` names the fields of `/proc/cpuinfo` that must be the same; `devices` change when a
    later Polydev puts its machines together in another way. Raises: MissingImage.
    """
    claims = {
        **vmm,
        "processor": _processor(processor),
        "kernel": file_claim(spec.kernel),
        "initramfs": file_claim(spec.initramfs),
        "golden image": file_claim(spec.root_image),
        "disk": f"{_state(spec.disk).st_size >> 20} MiB",
        "memory": f"{spec.memory_mib} MiB",
        "processors": str(spec.vcpus),
        "devices": _digest(devices),
    }
    return "".join(f"{name}: {value}\n" for name, value in claims.items())


def file_claim(path: Path) -> str:
    """A file by place and metadata: golden images and programs are replaced, never changed."""
    state = _state(path)
    return f"{path} {state.st_ino}.{state.st_size}.{state.st_mtime_ns}"


def _state(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except FileNotFoundError:
        raise MissingImage(f"{path} is missing") from None


def _processor(names: Sequence[str]) -> str:
    """The first one's model and what it can do. Source: proc(5), `/proc/cpuinfo`."""
    first = Path("/proc/cpuinfo").read_text("utf-8", "replace").split("\n\n", 1)[0]
    lines = (line.partition(":") for line in first.splitlines())
    fields = {name.strip(): value.strip() for name, _, value in lines}
    words = [fields.get(name, "") for name in names]
    return f"{fields.get('model name', 'unknown')} {_digest(words)}"


def _digest(words: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:16]
