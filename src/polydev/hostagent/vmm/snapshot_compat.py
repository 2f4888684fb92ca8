"""Fingerprints that say which snapshots a machine can restore.

One `name: value` pair a line, so that an error can name the pairs that differ
(`describe_difference` of `snapshots`). Machine id and network address are left out: the guest keeps
them in its own memory. Blocking.
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
    """Combine a driver's pairs, `vmm`, with those of the machine.

    `processor` names the fields of `/proc/cpuinfo` that must match; `devices` changes when a later
    Polydev builds its machines differently. Raises: MissingImage.
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
    """Identify a file by path and metadata: images and binaries are replaced, never edited."""
    state = _state(path)
    return f"{path} {state.st_ino}.{state.st_size}.{state.st_mtime_ns}"


def _state(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except FileNotFoundError:
        raise MissingImage(f"{path} is missing") from None


def _processor(names: Sequence[str]) -> str:
    """Return model and a digest of the first CPU's fields. Source: proc(5)."""
    first = Path("/proc/cpuinfo").read_text("utf-8", "replace").split("\n\n", 1)[0]
    lines = (line.partition(":") for line in first.splitlines())
    fields = {name.strip(): value.strip() for name, _, value in lines}
    values = [fields.get(name, "") for name in names]
    return f"{fields.get('model name', 'unknown')} {_digest(values)}"


def _digest(values: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(values).encode()).hexdigest()[:16]
