"""Snapshot fingerprints of Firecracker machines. Blocking.

Source: docs/snapshotting/versioning.md and snapshot-support.md of Firecracker.
"""

from __future__ import annotations

import os

from polydev.hostagent.vmm import snapshot_compat as common
from polydev.hostagent.vmm.contract import LaunchSpec
from polydev.hostagent.vmm.firecracker.configuration import KERNEL_LINE, LAYOUT

_PROCESSOR = ("vendor_id", "model name", "stepping", "microcode", "flags")


def fingerprint(spec: LaunchSpec, version: str) -> str:
    """Describe which snapshots fit. Raises: MissingImage."""
    vmm = {"Firecracker": version, "host kernel": os.uname().release}
    return common.fingerprint(spec, vmm, _PROCESSOR, [str(LAYOUT), KERNEL_LINE])
