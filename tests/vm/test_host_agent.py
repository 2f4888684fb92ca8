"""Test the host agent with real machines: creation, adoption, crashes, cleanup.

Each agent has its own folder and network namespace; the golden images are shared.
"""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from agent_process import AgentProcess, agent_world
from findings import failed_findings
from saved_machine import Resumed, SavedMachine, resumed_machine

from polydev.shared.domain import GuestFile, MachineKind, MachineState, new_vm_id
from polydev.shared.errors import (
    ChannelLost,
    DiskFull,
    HostUnreachable,
    MachineBusy,
    MachineNotReady,
    NoSuchFile,
    PolydevError,
    VmmFailed,
)
from polydev.shared.host_client import HostClient
from polydev.shared.host_protocol import (
    STDOUT,
    CreateMachine,
    DestroyMachine,
    ExecRequest,
    HostMachineView,
    StartMachine,
    StopMachine,
    WireFile,
    WriteFiles,
)

pytestmark = pytest.mark.vm

IMAGES = os.environ.get("POLYDEV_IMAGES_DIR", "/var/cache/polydev/golden-images")
BOOT_LIMIT_S = 240
SERVE = ["python3", "-m", "http.server", "9000", "--bind", "127.0.0.1", "-d", "/root/.codex"]


@pytest.fixture
async def agent(saved_machine: SavedMachine) -> AsyncIterator[AgentProcess]:
    async with agent_world(POLYDEV_DRIVER="auto", POLYDEV_IMAGES_DIR=IMAGES) as agent:
        saved_machine.put_probe_into(agent.state_dir)
        await agent.start()
        yield agent


@pytest.fixture
async def resumed(saved_machine: SavedMachine) -> AsyncIterator[Resumed]:
    async with resumed_machine(saved_machine) as it:
        yield it


@pytest.fixture
async def host(agent: AgentProcess) -> AsyncIterator[HostClient]:
    async with agent.host() as host:
        yield host


def cli_machine(vm_id: str, ready_timeout_s: float = BOOT_LIMIT_S) -> CreateMachine:
    return CreateMachine(
        vm_id=vm_id,
        machine_kind=MachineKind.CLI,
        memory_mib=512,
        vcpus=1,
        disk_mib=1024,
        ready_timeout_s=ready_timeout_s,
    )


async def run(
    host: HostClient, operation: object, operation_id: str | None = None
) -> HostMachineView | None:
    named = operation_id or f"test-{uuid.uuid4()}"
    return await host.run(named, operation, BOOT_LIMIT_S)  # type: ignore[arg-type]


async def output_of(host: HostClient, vm_id: str, *argv: str) -> str:
    output = await host.run_program(vm_id, argv, timeout_s=60)
    assert output.exit_code == 0, output.stderr
    return output.stdout.decode().strip()


async def until_state(host: HostClient, vm_id: str, *states: MachineState) -> HostMachineView:
    async with asyncio.timeout(120):
        while (view := await host.machine(vm_id)).state not in states:
            await asyncio.sleep(0.05)
    return view


async def until_vmm_runs(agent: AgentProcess) -> int:
    async with asyncio.timeout(60):
        while not agent.vmm_pids():
            await asyncio.sleep(0.05)
    return agent.vmm_pids()[0]


async def assert_nothing_left(agent: AgentProcess, host: HostClient) -> None:
    seen = await host.inventory()
    assert seen.machines == seen.folders == seen.taps == seen.firewall == []
    assert seen.processes == seen.addresses == {}
    assert seen.sockets == [str(agent.socket)]
    assert agent.vmm_pids() == []


async def test_machine_outlives_agent_and_stays_usable(resumed: Resumed) -> None:
    agent, host, vm_id, created = resumed.agent, resumed.host, resumed.vm_id, resumed.view
    assert agent.vmm_pids() == [created.pid]
    assert await output_of(host, vm_id, "id", "-u") == "0"
    file = WireFile.of(GuestFile("/root/.codex/auth.json", b"{}", mode=0o600))
    await run(host, WriteFiles(vm_id=vm_id, files=[file]))
    assert await host.read_file(vm_id, file.path) == b"{}"
    with pytest.raises(NoSuchFile):
        await host.read_file(vm_id, "/root/none")

    async with host.exec(vm_id, ExecRequest(argv=SERVE)):
        async with host.http(vm_id, 9000, timeout_s=60) as client:
            assert await _first_answer(client) == "{}"
        await agent.kill()

    await agent.start()
    assert await host.machine(vm_id) == created
    assert await output_of(host, vm_id, "cat", file.path) == "{}"
    assert await _is_gone(host, vm_id, "python3")

    assert await agent.end() == 0
    assert agent.vmm_pids() == [created.pid]
    await agent.start()
    assert await output_of(host, vm_id, "hostname") == vm_id[:11]
    await run(host, DestroyMachine(vm_id=vm_id))
    await assert_nothing_left(agent, host)


async def test_killed_vmm_is_noticed_and_restarted(resumed: Resumed) -> None:
    agent, host, vm_id, created = resumed.agent, resumed.host, resumed.vm_id, resumed.view
    assert created.pid is not None
    await run(host, WriteFiles(vm_id=vm_id, files=[WireFile.of(GuestFile("/root/a", b"one"))]))
    async with host.exec(vm_id, ExecRequest(argv=["sleep", "1000"])) as process:
        await process.write(b"x")
        os.kill(created.pid, signal.SIGKILL)
        with pytest.raises(PolydevError):
            await asyncio.wait_for(process.wait(), 60)

    failed = await until_state(host, vm_id, MachineState.FAILED)
    assert failed.error is not None
    assert "signal 9" in failed.error.message
    seen = await host.inventory()
    assert seen.processes == {}
    assert seen.addresses == {vm_id: created.ip_address}
    assert seen.sockets == [str(agent.socket)]
    with pytest.raises(MachineBusy):
        await output_of(host, vm_id, "true")
    finding = (await failed_findings(host))["machines"]
    assert finding.vm_id == vm_id
    assert f"The VMM of {vm_id} ended with signal 9" in finding.message
    assert f"polydev machine start {vm_id}" in finding.hint
    assert "console.log" in finding.hint

    assert await host.read_file(vm_id, "/root/a") == b"one"
    await run(host, WriteFiles(vm_id=vm_id, files=[WireFile.of(GuestFile("/root/b", b"two"))]))
    started = await run(host, StartMachine(vm_id=vm_id, ready_timeout_s=BOOT_LIMIT_S))
    assert started is not None
    assert (started.state, started.ip_address) == (MachineState.RUNNING, created.ip_address)
    assert await failed_findings(host) == {}, "the hint of `doctor` repairs it"
    assert await output_of(host, vm_id, "cat", "/root/a", "/root/b") == "onetwo"

    await agent.kill()
    assert started.pid is not None
    os.kill(started.pid, signal.SIGKILL)
    await agent.start()
    stopped = await host.machine(vm_id)
    assert (stopped.state, stopped.pid) == (MachineState.STOPPED, None)
    assert stopped.error is not None
    await run(host, DestroyMachine(vm_id=vm_id))
    await assert_nothing_left(agent, host)


async def test_agent_killed_during_creation_leaves_no_machine_and_retry_succeeds(
    agent: AgentProcess, host: HostClient
) -> None:
    vm_id = new_vm_id()
    creating = asyncio.create_task(run(host, cli_machine(vm_id), "one"))
    await until_vmm_runs(agent)
    await agent.kill()
    with pytest.raises(HostUnreachable):
        await creating
    assert len(agent.vmm_pids()) == 1
    await agent.start()
    await assert_nothing_left(agent, host)

    created = await run(host, cli_machine(vm_id), "one")
    assert created is not None
    assert await output_of(host, vm_id, "cat", "/proc/sys/kernel/hostname") == vm_id[:11]
    stopped = await run(host, StopMachine(vm_id=vm_id))
    assert stopped is not None
    assert (stopped.state, stopped.pid, stopped.error) == (MachineState.STOPPED, None, None)
    assert "Power down" in await host.console(vm_id)
    await run(host, DestroyMachine(vm_id=vm_id))
    await assert_nothing_left(agent, host)


async def test_machine_not_ready_in_time_leaves_only_logs(
    agent: AgentProcess, host: HostClient
) -> None:
    vm_id = new_vm_id()
    with pytest.raises(MachineNotReady) as raised:
        await run(host, cli_machine(vm_id, ready_timeout_s=1))
    assert vm_id in raised.value.message
    log_path = Path(raised.value.message.rpartition(" ")[2])
    assert log_path.is_file()
    assert log_path.is_relative_to(agent.state_dir / "logs")
    assert (await host.console(vm_id)).strip() in log_path.read_text()
    await assert_nothing_left(agent, host)


async def test_vmm_killed_before_guest_is_ready_leaves_nothing(
    agent: AgentProcess, host: HostClient
) -> None:
    creating = asyncio.create_task(run(host, cli_machine(new_vm_id())))
    os.kill(await until_vmm_runs(agent), signal.SIGKILL)
    with pytest.raises(VmmFailed):
        await creating
    await assert_nothing_left(agent, host)


async def test_destroy_does_not_wait_for_boot(agent: AgentProcess, host: HostClient) -> None:
    vm_id = new_vm_id()
    creating = asyncio.create_task(run(host, cli_machine(vm_id)))
    await until_vmm_runs(agent)
    await run(host, DestroyMachine(vm_id=vm_id))
    with pytest.raises(MachineBusy):  # cancelled before it booted
        await creating
    await assert_nothing_left(agent, host)


async def test_endless_guest_output_uses_no_agent_memory(resumed: Resumed) -> None:
    agent, host, vm_id = resumed.agent, resumed.host, resumed.vm_id
    before_kib = _resident_kib(agent.pid)
    async with host.exec(vm_id, ExecRequest(argv=["yes"])) as process:
        chunks = aiter(process)
        assert (await anext(chunks))[0] == STDOUT
        await asyncio.sleep(5)
        assert _resident_kib(agent.pid) - before_kib < 32 * 1024
        assert await output_of(host, vm_id, "echo", "still here") == "still here"
    assert await _is_gone(host, vm_id, "yes")
    with pytest.raises(ChannelLost):
        async with host.tcp(vm_id, 9):
            pass
    await run(host, DestroyMachine(vm_id=vm_id))
    await assert_nothing_left(agent, host)


async def test_full_disk_fails_creation_and_leaves_nothing() -> None:
    async with agent_world(POLYDEV_DRIVER="auto", POLYDEV_IMAGES_DIR=IMAGES) as agent:
        agent.state_dir.mkdir()
        small = f'mount -t tmpfs -o size=1200k none {agent.state_dir} && exec "$@"'
        await agent.start("unshare", "--mount", "sh", "-c", small, "sh")
        inside = Path(f"/proc/{agent.pid}/root{agent.socket}")
        async with HostClient(inside) as host:
            with pytest.raises(DiskFull):
                await run(host, cli_machine(new_vm_id()))
            seen = await host.inventory()
            assert seen.machines == seen.folders == seen.taps == []
            assert seen.processes == seen.addresses == {}


async def _first_answer(client: object) -> str:
    """Retry until the program listens: no event reports the open port."""
    async with asyncio.timeout(60):
        while True:
            try:
                return str((await client.get("/auth.json")).text.strip())  # type: ignore[attr-defined]
            except ChannelLost:
                await asyncio.sleep(0.2)


async def _is_gone(host: HostClient, vm_id: str, name: str) -> bool:
    """Wait until no program of that name runs in the machine."""
    async with asyncio.timeout(120):
        while True:
            names = await output_of(
                host, vm_id, "sh", "-c", "cat /proc/[0-9]*/comm 2>/dev/null; true"
            )
            if name not in names.split():
                return True
            await asyncio.sleep(0.2)


def _resident_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])
