"""Test the host agent process with simulated machines."""

from __future__ import annotations

import asyncio
import stat
import uuid
from collections.abc import AsyncIterator

import pytest
from agent_process import AgentProcess, agent_world
from pydantic import SecretStr

from polydev.shared.domain import GuestFile, MachineKind, MachineState, new_vm_id
from polydev.shared.errors import (
    ChannelLost,
    HostUnreachable,
    MachineBusy,
    MachineNotReady,
    NoSuchMachine,
    OperationMismatch,
    PolydevError,
)
from polydev.shared.host_client import HostClient
from polydev.shared.host_protocol import (
    CreateMachine,
    DestroyMachine,
    HostMachineView,
    RemoveFiles,
    StartMachine,
    StopMachine,
    WireFile,
    WriteFiles,
)

TOKEN = "made-up-bearer-token"


@pytest.fixture
async def agent() -> AsyncIterator[AgentProcess]:
    async with agent_world(POLYDEV_DRIVER="simulated") as agent:
        await agent.start()
        yield agent


@pytest.fixture
async def host(agent: AgentProcess) -> AsyncIterator[HostClient]:
    async with agent.host() as host:
        yield host


def create(vm_id: str, kind: MachineKind = MachineKind.CLI) -> CreateMachine:
    token = SecretStr(TOKEN) if kind is MachineKind.BROWSER else None
    return CreateMachine(
        vm_id=vm_id, machine_kind=kind, memory_mib=512, vcpus=1, disk_mib=64, token=token
    )


async def run(host: HostClient, operation: object) -> HostMachineView | None:
    return await host.run(f"test-{uuid.uuid4()}", operation, 60)  # type: ignore[arg-type]


async def test_machine_goes_through_its_lifecycle(host: HostClient) -> None:
    health = await host.health()
    assert (health.status, health.driver) == ("ok", "simulated")
    vm_id = new_vm_id()
    created = await run(host, create(vm_id, MachineKind.BROWSER))
    assert created is not None
    assert created.state is MachineState.RUNNING
    assert await host.machine(vm_id) == created
    assert await host.machines() == [created]
    assert "POLYDEV-READY" in await host.console(vm_id)

    file = WireFile.of(GuestFile("/root/.codex/auth.json", b'{"a": 1}'))
    await run(host, WriteFiles(vm_id=vm_id, files=[file]))
    assert await host.read_file(vm_id, file.path) == b'{"a": 1}'
    async with host.http(vm_id, 8080, headers={"authorization": f"Bearer {TOKEN}"}) as client:
        assert (await client.get("/health")).json()["status"] == "ok"
    with pytest.raises(ChannelLost):
        async with host.tcp(vm_id, 5999):
            pass

    stopped = await run(host, StopMachine(vm_id=vm_id))
    assert stopped is not None
    assert (stopped.state, stopped.ip_address) == (MachineState.STOPPED, created.ip_address)
    await run(host, RemoveFiles(vm_id=vm_id, paths=[file.path]))
    started = await run(host, StartMachine(vm_id=vm_id))
    assert started is not None
    assert started.state is MachineState.RUNNING

    await run(host, DestroyMachine(vm_id=vm_id))
    await run(host, DestroyMachine(vm_id=vm_id))
    with pytest.raises(NoSuchMachine):
        await host.machine(vm_id)
    await assert_nothing_left(host)


async def test_repeated_request_runs_once(host: HostClient) -> None:
    vm_id = new_vm_id()
    views = await asyncio.gather(*(host.run("one", create(vm_id), 60) for _ in range(8)))
    assert all(view == views[0] for view in views)
    assert [view.vm_id for view in await host.machines()] == [vm_id]
    with pytest.raises(OperationMismatch):
        await host.run("one", create(new_vm_id()), 60)


async def test_machine_ended_before_create_response_runs_on_retry(
    agent: AgentProcess, host: HostClient
) -> None:
    vm_id = new_vm_id()
    created = await host.run("one", create(vm_id), 60)
    await agent.kill()  # a simulated machine ends with its agent
    await agent.start()
    assert (await host.machine(vm_id)).state is MachineState.STOPPED

    again = await host.run("another", create(vm_id), 60)
    assert created is not None
    assert again is not None
    assert (again.state, again.ip_address) == (MachineState.RUNNING, created.ip_address)
    with pytest.raises(MachineBusy, match="another kind or size"):
        await host.run("third", create(vm_id, MachineKind.BROWSER), 60)


@pytest.mark.parametrize("delay_s", [0.02, 0.1, 0.3])
async def test_retry_after_agent_kill_runs_once(
    agent: AgentProcess, host: HostClient, delay_s: float
) -> None:
    vm_ids = [new_vm_id() for _ in range(12)]
    creating = asyncio.gather(
        *(host.run(f"create-{vm_id}", create(vm_id), 60) for vm_id in vm_ids),
        return_exceptions=True,
    )
    await asyncio.sleep(delay_s)
    await agent.kill()
    outcomes = await creating
    assert all(isinstance(end, HostMachineView | HostUnreachable) for end in outcomes), outcomes

    await agent.start()
    await asyncio.gather(*(host.run(f"create-{vm_id}", create(vm_id), 60) for vm_id in vm_ids))
    seen = await host.inventory()
    assert seen.machines == seen.folders == sorted(vm_ids)
    assert seen.addresses.keys() == set(vm_ids)
    assert len(set(seen.addresses.values())) == len(seen.taps) == len(seen.firewall) == 12

    destroying = asyncio.gather(
        *(host.run(f"end-{vm_id}", DestroyMachine(vm_id=vm_id), 60) for vm_id in vm_ids),
        return_exceptions=True,
    )
    await asyncio.sleep(delay_s / 2)
    await agent.kill()
    await destroying
    await agent.start()
    await asyncio.gather(
        *(host.run(f"end-{vm_id}", DestroyMachine(vm_id=vm_id), 60) for vm_id in vm_ids)
    )
    await assert_nothing_left(host)


async def test_shutdown_answers_running_requests_and_removes_socket(
    agent: AgentProcess, host: HostClient
) -> None:
    await run(host, create(new_vm_id()))
    assert await agent.end() == 0
    assert not agent.socket.exists()
    with pytest.raises(HostUnreachable):
        await host.health()
    await agent.start()
    assert len(await host.machines()) == 1


async def test_unready_machine_is_reverted_on_timeout_or_agent_shutdown() -> None:
    async with agent_world(
        POLYDEV_DRIVER="simulated", POLYDEV_SIMULATION='{"becomes_ready": false}'
    ) as agent:
        await agent.start()
        async with agent.host() as host:
            late = create(new_vm_id()).model_copy(update={"ready_timeout_s": 0.5})
            with pytest.raises(MachineNotReady, match=late.vm_id):
                await run(host, late)
            await assert_nothing_left(host)

            creating = asyncio.create_task(run(host, create(new_vm_id())))
            while not (await host.inventory()).taps:
                await asyncio.sleep(0.02)
            assert await agent.end() == 0
            with pytest.raises(HostUnreachable):
                await creating
            await agent.start()
            await assert_nothing_left(host)


async def test_only_root_and_configured_group_may_connect(agent: AgentProcess) -> None:
    mode = agent.socket.stat()
    assert (stat.S_IMODE(mode.st_mode), mode.st_uid, mode.st_gid) == (0o660, 0, 0)
    assert stat.S_IMODE(agent.socket.parent.stat().st_mode) == 0o755
    await agent.end()
    agent.env["POLYDEV_SOCKET_GROUP"] = "nogroup"
    await agent.start()
    assert agent.socket.stat().st_gid == 65534


async def test_second_agent_on_same_state_is_refused(agent: AgentProcess) -> None:
    second = AgentProcess(agent.state_dir.parent, agent.netns, agent.env)
    second.log = agent.state_dir.parent / "second.log"
    code, line = await second.start_refused()
    assert code == 1
    assert "Another host agent already runs in" in line


async def test_agent_without_root_is_refused() -> None:
    async with agent_world(POLYDEV_DRIVER="simulated") as agent:
        agent.state_dir.parent.chmod(0o755)
        code, line = await agent.start_refused("setpriv", "--reuid=65534", "--clear-groups")
        assert code == 1
        assert "must run as root" in line


@pytest.mark.parametrize(
    ("variable", "value"),
    [("POLYDEV_DRIVER", "xen"), ("POLYDEV_SUBNET", "many"), ("POLYDEV_SOCKET_GROUP", "nobodies")],
)
async def test_invalid_setting_is_named_in_one_line(variable: str, value: str) -> None:
    async with agent_world(POLYDEV_DRIVER="simulated") as agent:
        agent.env[variable] = value
        code, line = await agent.start_refused()
        assert code == 1
        assert variable in line
        assert "Traceback" not in agent.log.read_text()


async def test_logs_and_journal_hold_no_secret(agent: AgentProcess, host: HostClient) -> None:
    vm_id = new_vm_id()
    await run(host, create(vm_id, MachineKind.BROWSER))
    file = WireFile.of(GuestFile("/root/secret", b"made-up-file-secret"))
    await run(host, WriteFiles(vm_id=vm_id, files=[file]))
    with pytest.raises(PolydevError):
        await run(host, WriteFiles(vm_id=vm_id, files=[file.model_copy(update={"path": "x"})]))
    await run(host, DestroyMachine(vm_id=vm_id))
    await agent.end()
    files = [path for path in agent.state_dir.parent.rglob("*") if path.is_file()]
    assert len(files) > 5
    for path in files:
        content = path.read_bytes()
        for secret in (TOKEN.encode(), b"made-up-file-secret", file.content):
            assert secret not in content, path


async def assert_nothing_left(host: HostClient) -> None:
    seen = await host.inventory()
    assert seen.machines == seen.folders == seen.taps == seen.firewall == []
    assert seen.processes == seen.addresses == {}
    assert [path.rpartition("/")[2] for path in seen.sockets] == ["hostd.sock"]
