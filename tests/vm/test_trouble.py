"""Test failures of a real VMM or guest, and their messages."""

from __future__ import annotations

import asyncio
import os
import subprocess
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from agent_process import AgentProcess, agent_world
from findings import failed_findings
from saved_machine import SavedMachine, resumed_machine

from polydev.shared.domain import GuestFile, MachineKind, new_vm_id
from polydev.shared.errors import DiskFull, VmmFailed
from polydev.shared.host_client import HostClient
from polydev.shared.host_protocol import (
    CreateMachine,
    HostMachineView,
    Operation,
    StartMachine,
    StopMachine,
    WireFile,
    WriteFiles,
)

pytestmark = pytest.mark.vm

IMAGES = os.environ.get("POLYDEV_IMAGES_DIR", "/var/cache/polydev/golden-images")
QEMU = "/usr/bin/qemu-system-x86_64"
BOOT_LIMIT_S = 300
CREDENTIALS = "/root/.codex/auth.json"


def cli_machine(vm_id: str) -> CreateMachine:
    return CreateMachine(
        vm_id=vm_id,
        machine_kind=MachineKind.CLI,
        memory_mib=512,
        vcpus=1,
        disk_mib=256,
        ready_timeout_s=BOOT_LIMIT_S,
    )


async def run(host: HostClient, operation: Operation) -> HostMachineView | None:
    return await host.run(f"test-{uuid.uuid4()}", operation, BOOT_LIMIT_S)


_SHORT_TIMEOUT_AGENT = """
import sys
from polydev.hostagent.vmm.qemu import qmp
qmp._ANSWER_LIMIT_S = 3
from polydev.hostagent.__main__ import main
sys.exit(main())
"""


@asynccontextmanager
async def agent_with_qemu(script: str, folder: Path) -> AsyncIterator[AgentProcess]:
    """Start an agent that runs `script` in place of QEMU.

    Only the agent sees the script, in a mount namespace. Its QMP timeout is a tenth of the usual.
    """
    fake, agent_program = folder / "fake-qemu", folder / "agent.py"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    folder.chmod(0o755)
    agent_program.write_text(_SHORT_TIMEOUT_AGENT)
    inside = f'mount --bind {fake} {QEMU}; exec "$1" {agent_program}'
    async with agent_world(POLYDEV_DRIVER="qemu", POLYDEV_IMAGES_DIR=IMAGES) as agent:
        await agent.start("unshare", "-m", "--", "sh", "-ec", inside, "sh")
        yield agent


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'cannot load libmissing.so' >&2; exit 1", "cannot load libmissing.so"),
        ("exec sleep 500", "did not answer on its control socket within"),
    ],
    ids=["exits", "never answers"],
)
async def test_silent_vmm_is_reported_with_its_output_and_leaves_nothing(
    tmp_path: Path, script: str, message: str
) -> None:
    async with agent_with_qemu(script, tmp_path) as agent, agent.host() as host:
        driver = (await failed_findings(host))["driver"]
        assert "No machine can be started on this host" in driver.message
        assert message in driver.message
        with pytest.raises(VmmFailed, match="QEMU did not start") as refused:
            await run(host, cli_machine(vm_id := new_vm_id()))
        assert message in refused.value.message
        assert f"machines/{vm_id}/console.log" in refused.value.message
        assert f"{Path(QEMU).name} --version" in refused.value.hint
        assert (await failed_findings(host)).keys() == {"driver"}, (
            "the failed machine left something behind"
        )


async def test_machine_with_full_disk_loses_network_and_recovers(
    saved_machine: SavedMachine,
) -> None:
    """Use one machine for both faults, as a boot is slow."""
    async with resumed_machine(saved_machine) as it:
        assert await failed_findings(it.host) == {}
        await _check_full_disk(it.host, it.vm_id)
        await _check_lost_network(it.agent, it.host, it.vm_id)
        assert await failed_findings(it.host) == {}, "the hint of `doctor` repairs it"


async def _check_full_disk(host: HostClient, vm_id: str) -> None:
    """Fail to deliver credentials, then make room and retry."""
    filling = "cat /dev/zero > /root/full; sync; cat /dev/zero > /root/rest; sync; true"
    await host.run_program(vm_id, ["sh", "-c", filling], timeout_s=120)
    written = WriteFiles(vm_id=vm_id, files=[WireFile.of(GuestFile(CREDENTIALS, b"x" * 100_000))])
    with pytest.raises(DiskFull, match=f"no room for {CREDENTIALS}") as refused:
        await run(host, written)
    assert "polydev machine exec" in refused.value.hint
    await host.run_program(vm_id, ["rm", "/root/full", "/root/rest"], timeout_s=60)
    await run(host, written)
    assert await host.read_file(vm_id, CREDENTIALS) == b"x" * 100_000


async def _check_lost_network(agent: AgentProcess, host: HostClient, vm_id: str) -> None:
    [tap] = (await host.inventory()).taps
    command = ["ip", "-n", agent.netns, "link", "del", tap]
    await asyncio.to_thread(subprocess.run, command, check=True)
    finding = (await failed_findings(host))["TAPs"]
    assert finding.vm_id == vm_id
    assert f"TAP {tap} is gone" in finding.message
    assert f"polydev machine stop {vm_id}" in finding.hint
    await run(host, StopMachine(vm_id=vm_id))
    await run(host, StartMachine(vm_id=vm_id, ready_timeout_s=BOOT_LIMIT_S))
    assert await failed_findings(host) == {}
