"""Snapshot fingerprints of QEMU machines. Blocking."""

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


def fingerprint(spec: LaunchSpec, acceleration: Acceleration) -> str:
    """Describe which snapshots fit. Raises: MissingTool, MissingImage."""
    program = Path(tool(PROGRAM, PACKAGE)).resolve()
    vmm = {"QEMU": common.file_claim(program), "accelerator": acceleration.name}
    return common.fingerprint(spec, vmm, _PROCESSOR, _devices(spec, acceleration))


def _devices(spec: LaunchSpec, acceleration: Acceleration) -> list[str]:
    anonymous = replace(spec, vm_id="", tap="", mac="", channel_mac="", channel_port=0)
    files = MachineDescriptors(root_image=0, disk=0, config_drive=0, tap=0)
    # The measured TSC frequency varies a little, and a saved guest has its own already.
    same = replace(acceleration, tsc_khz=None)
    return machine_arguments(anonymous, BootDescriptors(0, 0, 0, 0), files, same)
