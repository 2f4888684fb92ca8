"""Test the health checks of a host agent and of `doctor` without one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from agent_process import AgentProcess, agent_world

from polydev.hostagent.health.checks import HealthChecker
from polydev.hostagent.network import Network, NetworkConfig
from polydev.hostagent.network.addresses import AddressPool
from polydev.hostagent.settings import HostSettings
from polydev.shared.domain import Finding, MachineKind, new_vm_id
from polydev.shared.errors import MachineNotReady
from polydev.shared.host_protocol import (
    CreateMachine,
    DestroyMachine,
    HibernateMachine,
    ResumeMachine,
    StartMachine,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
async def agent() -> AsyncIterator[AgentProcess]:
    async with agent_world(POLYDEV_DRIVER="simulated") as it:
        await it.start()
        yield it


async def machine(agent: AgentProcess) -> str:
    vm_id = new_vm_id()
    asked = CreateMachine(
        vm_id=vm_id, machine_kind=MachineKind.CLI, memory_mib=256, vcpus=1, disk_mib=256
    )
    async with agent.host() as host:
        await host.run(f"create-{vm_id}", asked, 60)
    return vm_id


async def check_with_agent(agent: AgentProcess) -> list[Finding]:
    async with agent.host() as host:
        return (await host.diagnosis()).findings


async def check_without_agent(agent: AgentProcess) -> list[Finding]:
    settings = host_settings(agent)
    network = Network.from_settings(settings)
    try:
        return await HealthChecker(settings, network).diagnose_without_agent()
    finally:
        await network.close()


def host_settings(agent: AgentProcess) -> HostSettings:
    return HostSettings(
        state_dir=agent.state_dir, netns=agent.netns, uplink="none", driver="simulated"
    )


def failed_finding(findings: list[Finding], name: str) -> Finding:
    """Return the one failed finding of that name, which has a hint."""
    [it] = [it for it in findings if not it.ok and it.name == name]
    assert it.hint
    return it


async def test_healthy_host_has_no_findings(agent: AgentProcess) -> None:
    await machine(agent)
    findings = await check_with_agent(agent)
    assert [it for it in findings if not it.ok] == []
    assert {it.name for it in findings} >= {
        *("driver", "images", "disk space", "machines", "namespace", "bridge"),
        *("TAPs", "firewall", "sockets", "orphans"),
    }


async def test_hibernated_machine_is_healthy_until_its_memory_is_lost(agent: AgentProcess) -> None:
    vm_id = await machine(agent)
    async with agent.host() as host:
        await host.run(f"sleep-{vm_id}", HibernateMachine(vm_id=vm_id), 60)
    for findings in (await check_with_agent(agent), await check_without_agent(agent)):
        assert [it for it in findings if not it.ok] == []
        assert "1, 0 of them running, 1 hibernated" in {it.message for it in findings}
    (agent.state_dir / "machines" / vm_id / "memory.saved").unlink()
    assert vm_id in failed_finding(await check_with_agent(agent), "machines").message
    async with agent.host() as host:
        await host.run(f"wake-{vm_id}", ResumeMachine(vm_id=vm_id), 60)
    assert all(it.ok for it in await check_with_agent(agent))


async def test_host_stays_healthy_while_machines_come_and_go(agent: AgentProcess) -> None:
    for _ in range(3):
        vm_id = await machine(agent)
        assert all(it.ok for it in await check_with_agent(agent))
        async with agent.host() as host:
            await host.run(f"destroy-{vm_id}", DestroyMachine(vm_id=vm_id), 60)
        assert all(it.ok for it in await check_with_agent(agent))


async def test_folder_without_record_is_an_orphan(agent: AgentProcess) -> None:
    left = agent.state_dir / "machines" / new_vm_id()
    left.mkdir()
    assert str(left) in failed_finding(await check_with_agent(agent), "orphans").message
    await agent.end()
    await agent.start()
    assert all(it.ok for it in await check_with_agent(agent)), (
        "the hint says that a restart removes it"
    )
    assert not left.exists()


async def test_unreadable_record_needs_manual_repair(agent: AgentProcess) -> None:
    left = agent.state_dir / "machines" / new_vm_id()
    left.mkdir()
    (left / "machine.json").write_text("{")
    finding = failed_finding(await check_with_agent(agent), "orphans")
    assert f"The record in {left} is unreadable" in finding.message
    assert "machine.json" in finding.hint


async def test_unowned_address_is_an_orphan(agent: AgentProcess) -> None:
    await agent.kill()
    pool = AddressPool(NetworkConfig.from_settings(host_settings(agent)))
    pool.load()
    address = pool.lease(gone := new_vm_id())
    finding = failed_finding(await check_without_agent(agent), "orphans")
    assert str(address) in finding.message
    assert gone in finding.message
    await agent.start()
    assert all(it.ok for it in await check_with_agent(agent))


@contextmanager
def stray_vmm(folder: Path) -> Iterator[int]:
    """Start a process that looks like a VMM: same working folder and program."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", "import time; time.sleep(600)", "qemu-system-x86_64"]
    process = subprocess.Popen(command, cwd=folder)
    folder.rmdir()
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


async def test_unowned_vmm_is_an_orphan(tmp_path: Path) -> None:
    async with agent_world(POLYDEV_DRIVER="qemu", POLYDEV_IMAGES_DIR=str(tmp_path)) as agent:
        await agent.start()
        with stray_vmm(agent.state_dir / "machines" / new_vm_id()) as pid:
            assert (
                f"VMM process {pid}"
                in failed_finding(await check_with_agent(agent), "orphans").message
            )
            await agent.kill()
            assert (
                f"VMM process {pid}"
                in failed_finding(await check_without_agent(agent), "orphans").message
            )


async def test_stale_socket_is_reported(agent: AgentProcess) -> None:
    vm_id = await machine(agent)
    await agent.kill()
    left = agent.state_dir / "machines" / vm_id / "qmp.sock"
    subprocess.run(
        [sys.executable, "-c", f"import socket; socket.socket(1).bind({str(left)!r})"], check=True
    )
    finding = failed_finding(await check_without_agent(agent), "sockets")
    assert str(left) in finding.message


async def test_machine_without_vmm_is_named(agent: AgentProcess) -> None:
    vm_id = await machine(agent)
    await agent.kill()
    finding = failed_finding(await check_without_agent(agent), "machines")
    assert finding.vm_id == vm_id
    assert f"Machine {vm_id} should run" in finding.message
    assert f"polydev machine start {vm_id}" in finding.hint
    assert "console.log" in finding.hint


async def test_machine_not_ready_in_time_names_limit_and_console_log(
    agent: AgentProcess,
) -> None:
    vm_id = await machine(agent)
    await agent.kill()
    agent.env["POLYDEV_SIMULATION"] = '{"becomes_ready": false}'
    await agent.start()
    async with agent.host() as host:
        with pytest.raises(MachineNotReady, match=r"was not ready within 0\.5 s"):
            await host.run("start", StartMachine(vm_id=vm_id, ready_timeout_s=0.5), 60)
    finding = failed_finding(await check_with_agent(agent), "machines")
    assert finding.vm_id == vm_id
    assert finding.message == f"Machine {vm_id} was not ready within 0.5 s"
    assert f"polydev machine start {vm_id}" in finding.hint
    assert str(agent.state_dir / "machines" / vm_id / "console.log") in finding.hint


async def test_host_without_images_explains_how_to_build_them(tmp_path: Path) -> None:
    async with agent_world(POLYDEV_DRIVER="qemu", POLYDEV_IMAGES_DIR=str(tmp_path)) as agent:
        await agent.start()
        findings = await check_with_agent(agent)
    without = [it for it in findings if it.name == "images"]
    assert [it.ok for it in without] == [False] * 3
    assert all("polydev image build" in it.hint for it in without)
    assert "No machine can be started" in failed_finding(findings, "driver").message


FULL = """
mkdir -p "$POLYDEV_STATE_DIR/machines"
mount -t tmpfs -o size={size},nr_inodes={inodes} full "$POLYDEV_STATE_DIR/machines"
exec "$@"
"""


@pytest.mark.parametrize(
    ("size", "inodes", "message"), [("64m", 9999, "Only 0.1 GiB"), ("2g", 40, "more files")]
)
async def test_nearly_full_disk_is_reported(size: str, inodes: int, message: str) -> None:
    async with agent_world(POLYDEV_DRIVER="simulated") as agent:
        script = FULL.format(size=size, inodes=inodes)
        await agent.start("unshare", "-m", "--", "sh", "-ec", script, "sh")
        finding = failed_finding(await check_with_agent(agent), "disk space")
        assert message in finding.message
        assert "Destroy unused machines" in finding.hint
