"""What a guest that QEMU saved needs to find again (`vmm/fingerprint.py`). Blocking."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from polydev.hostagent.system.sandbox import tool
from polydev.hostagent.vmm import snapshot_compat as common
from polydev.hostagent.vmm.contract import LaunchSpec
from polydev.hostagent.vmm.qemu.command import (
    PACKAGE,
    PROGRAM,
    Acceleration,
    BootDescriptors,
    MachineDescriptors,
    machine_arguments,
)

_PROCESSOR = ("vendor_id", "model name", "stepping", "flags")


def fingerprint(spec: LaunchSpec, how: Acceleration) -> str:
    """Raises: MissingTool, MissingImage."""
    program = Path(tool(PROGRAM, PACKAGE)).resolve()
    vmm = {"QEMU": common.file_claim(program), "accelerator": how.name}
    return common.fingerprint(spec, vmm, _PROCESSOR, _devices(spec, how))


def _devices(spec: LaunchSpec, how: Acceleration) -> list[str]:
    nobody = replace(spec, vm_id="", tap="", mac="", channel_mac="", channel_port=0)
    files = MachineDescriptors(root_image=0, disk=0, config_drive=0, tap=0)
    # What a guest measures of the host's clock differs a little each time; it has its own already.
    same = replace(how, tsc_khz=None)
    return machine_arguments(nobody, BootDescriptors(0, 0, 0, 0), files, same)
