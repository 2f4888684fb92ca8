"""What a saved guest needs to find again: QEMU, processor, files, and the machine it ran in.

`driver.py` answers with it. One claim a line, `name: value`, so that two of them can be compared in
words (`snapshots.difference`). What a machine is called and where it is in the network is not in
it: the guest carries that in its own memory. Blocking.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

from polydev.errors import MissingImage
from polydev.hostd.confine import tool
from polydev.hostd.vmm.qemu.command import (
    PACKAGE,
    PROGRAM,
    Acceleration,
    BootDescriptors,
    MachineDescriptors,
    machine_arguments,
)
from polydev.hostd.vmm.vmm import LaunchSpec

_PROCESSOR = ("vendor_id", "model name", "stepping", "flags")


def fingerprint(spec: LaunchSpec, how: Acceleration) -> str:
    """Raises: MissingTool, MissingImage."""
    claims = {
        "QEMU": _file(Path(tool(PROGRAM, PACKAGE)).resolve()),
        "accelerator": how.name,
        "processor": _processor(),
        "kernel": _file(spec.kernel),
        "initramfs": _file(spec.initramfs),
        "golden image": _file(spec.root_image),
        "disk": f"{_state(spec.disk).st_size >> 20} MiB",
        "memory": f"{spec.memory_mib} MiB",
        "processors": str(spec.vcpus),
        "devices": _devices(spec, how),
    }
    return "".join(f"{name}: {value}\n" for name, value in claims.items())


def _file(path: Path) -> str:
    """A file by place and metadata: golden images and programs are replaced, never changed."""
    state = _state(path)
    return f"{path} {state.st_ino}.{state.st_size}.{state.st_mtime_ns}"


def _state(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except FileNotFoundError:
        raise MissingImage(f"{path} is missing") from None


def _processor() -> str:
    """The first one's model and what it can do. Source: proc(5), `/proc/cpuinfo`."""
    first = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0]
    fields = dict(_pair(line) for line in first.splitlines())
    words = [fields.get(name, "") for name in _PROCESSOR]
    return f"{fields.get('model name', 'unknown')} {_digest(words)}"


def _devices(spec: LaunchSpec, how: Acceleration) -> str:
    """Changes when a later Polydev puts its machines together in another way."""
    nobody = replace(spec, vm_id="", tap="", mac="", channel_mac="", channel_port=0)
    files = MachineDescriptors(root_image=0, disk=0, config_drive=0, tap=0)
    # What a guest measures of the host's clock differs a little each time; it has its own already.
    same = replace(how, tsc_khz=None)
    return _digest(machine_arguments(nobody, BootDescriptors(0, 0, 0, 0), files, same))


def _digest(words: list[str]) -> str:
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:16]


def _pair(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip(), value.strip()
