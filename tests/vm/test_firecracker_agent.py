"""Test the host agent with the Firecracker driver and its doubles, without a guest.

Covers driver selection, provisioning, recovery, hibernation and inventory; the driver contract is
tested in tests/contract.
"""

from __future__ import annotations

import asyncio
import os
import tarfile
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from agent_process import AgentProcess, agent_world

from polydev.hostagent.images import ImageStore
from polydev.hostagent.machines.image_gc import named_by_machines
from polydev.hostagent.vmm.firecracker.jail import cgroup
from polydev.shared.domain import GuestFile, MachineKind, MachineState, new_vm_id
from polydev.shared.host_client import HostClient
from polydev.shared.host_protocol import (
    CreateMachine,
    DestroyMachine,
    HibernateMachine,
    HostMachineView,
    ResumeMachine,
    WireFile,
    WriteFiles,
)
from polydev.testing.fake_firecracker import VERSION, install

pytestmark = pytest.mark.vm

IMAGES = os.environ.get("POLYDEV_IMAGES_DIR", "/var/cache/polydev/golden-images")
LIMIT_S = 120


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[AgentProcess]:
    programs = install(tmp_path)
    async with agent_world(
        POLYDEV_DRIVER="firecracker",
        POLYDEV_IMAGES_DIR=IMAGES,
        POLYDEV_FIRECRACKER=str(programs.firecracker),
        POLYDEV_JAILER=str(programs.jailer),
    ) as agent:
        await agent.start()
        yield agent


async def run(host: HostClient, operation: object) -> HostMachineView | None:
    return await host.run(f"test-{uuid.uuid4()}", operation, LIMIT_S)  # type: ignore[arg-type]


async def test_machine_survives_agent_death_and_hibernation_and_leaves_nothing(
    agent: AgentProcess, tmp_path: Path
) -> None:
    vm_id = new_vm_id()
    create = CreateMachine(
        vm_id=vm_id,
        machine_kind=MachineKind.CLI,
        memory_mib=512,
        vcpus=1,
        disk_mib=1024,
        ready_timeout_s=LIMIT_S,
    )
    async with agent.host() as host:
        created = await run(host, create)
        assert created is not None
        assert created.state is MachineState.RUNNING
        health = await host.health()
        assert (health.driver, health.driver_version) == ("firecracker", VERSION)
        assert "POLYDEV_CHANNEL_MAC=''" in machine_settings(agent, vm_id)
        thought = WireFile.of(GuestFile("/run/thought", b"in memory"))
        await run(host, WriteFiles(vm_id=vm_id, files=[thought]))
        (pid,) = agent.vmm_pids()

    await agent.kill()
    await agent.start()
    assert agent.vmm_pids() == [pid]

    async with agent.host() as host:
        assert (await host.run_program(vm_id, ["true"], timeout_s=LIMIT_S)).exit_code == 0
        assert (await host.inventory()).processes == {vm_id: pid}
        unowned = tmp_path / "machines-of-another-state-folder"
        used = await asyncio.to_thread(named_by_machines, ImageStore(Path(IMAGES)), unowned)
        assert {"cli", "kernel"} <= {name.partition("-")[0] for name in used}

        hibernated = await run(host, HibernateMachine(vm_id=vm_id))
        assert hibernated is not None
        assert hibernated.state is MachineState.HIBERNATED
        assert agent.vmm_pids() == []

        resumed = await run(host, ResumeMachine(vm_id=vm_id, ready_timeout_s=LIMIT_S))
        assert resumed is not None
        assert resumed.state is MachineState.RUNNING
        assert resumed.wake is not None
        assert resumed.wake.how == "resumed"
        assert await host.read_file(vm_id, "/run/thought") == b"in memory"

        await run(host, DestroyMachine(vm_id=vm_id))
        seen = await host.inventory()
        assert seen.folders == seen.taps == []
        assert seen.processes == {}
        assert agent.vmm_pids() == []
    if mounted := cgroup.root():
        folder = mounted / agent.netns
        assert [path.name for path in await asyncio.to_thread(folders_in, folder)] == []


def folders_in(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()]


def machine_settings(agent: AgentProcess, vm_id: str) -> str:
    """Return the machine's settings on its config drive."""
    with tarfile.open(agent.state_dir / "machines" / vm_id / "config.tar") as archive:
        file = archive.extractfile("machine.env")
        assert file is not None
        return file.read().decode()
