"""Test the guest side of a vsock channel without Firecracker.

QEMU's machine has no vsock device here, so the guest connects to itself over `vsock_loopback`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from driver_worlds import QemuWorld, qemu_world

from polydev.hostagent.vmm.qemu import command

pytestmark = pytest.mark.vm
READY_S = 240


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[QemuWorld]:
    async with qemu_world(tmp_path) as it:
        yield it


async def test_guest_without_channel_nic_is_ready_over_vsock(
    world: QemuWorld,
) -> None:
    spec = await world.spec(has_channel_nic=False)
    vmm = await world.driver.launch(spec)
    began_s = time.monotonic()
    async with asyncio.timeout(READY_S):
        await vmm.wait_ready()
    print(f"ready over vsock after {time.monotonic() - began_s:.1f} s")
    await vmm.kill()
    console = (spec.folder / "console.log").read_text("utf-8", "replace")
    assert "POLYDEV-FAILED" not in console
    assert spec.ready_marker in console


async def test_guest_with_reset_on_shutdown_ends_cleanly(
    world: QemuWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Firecracker cannot power off; `reboot=k` selects a reset (phases.sh)."""
    monkeypatch.setattr(command, "_KERNEL_LINE", f"{command._KERNEL_LINE} reboot=k")
    spec = await world.spec("""
. /phases.sh
boot_done
say "POLYDEV-READY at the end"
power_off
""")
    vmm = await world.driver.launch(spec)
    async with asyncio.timeout(READY_S):
        report = await vmm.wait()
    console = (spec.folder / "console.log").read_text("utf-8", "replace")
    assert "POLYDEV-READY at the end" in console
    assert "reboot: Restarting system" in console
    assert report.status == 0
