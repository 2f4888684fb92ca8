"""The simulated driver's machines, reached as the host agent reaches any machine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from polydev.hostagent.channel import Channel, ChannelLimits
from polydev.hostagent.provisioning.config_drive import MachineConfig, write_config_drive
from polydev.hostagent.provisioning.ssh_keys import make_keys
from polydev.hostagent.vmm.contract import LaunchSpec
from polydev.shared import providers
from polydev.shared.domain import CredentialKind, GuestFile, MachineKind
from polydev.shared.errors import ChannelLost, GuestMisbehaved, NoSuchFile, VmmFailed
from polydev.shared.host_protocol import STDERR, STDOUT, ExecRequest
from polydev.testing.simulated_vmm import LoginEnd, SimulatedDriver, Simulation
from polydev.testing.simulated_vmm.direct_channel import DirectChannel
from polydev.testing.simulated_vmm.machine import SimulatedVmm

TOKEN = "standin-bearer-token"
Launch = Callable[..., Awaitable[tuple[SimulatedVmm, Channel]]]


async def spec_in(folder: Path, kind: MachineKind) -> tuple[LaunchSpec, Any]:
    keys = await make_keys(folder / "keys")
    config = MachineConfig(
        vm_id=folder.name,
        kind=kind,
        hostname="simulated",
        address="192.168.100.5/24",
        mac="02:01:c0:a8:64:05",
        gateway="192.168.100.1",
        dns=(),
        channel_mac="02:02:c0:a8:64:05",
        ready_nonce="0123",
        clock_s=1,
        host_key=keys.host_private,
        authorized_key=keys.client_public,
        token=TOKEN if kind is MachineKind.BROWSER else None,
    )
    await write_config_drive(folder / "config.tar", config, uid=0)
    nowhere = Path("/dev/null")
    spec = LaunchSpec(
        vm_id=folder.name,
        folder=folder,
        kernel=nowhere,
        initramfs=nowhere,
        root_image=nowhere,
        disk=nowhere,
        config_drive=folder / "config.tar",
        memory_mib=256,
        vcpus=1,
        netns="nowhere",
        tap="pd5",
        mac=config.mac,
        channel_mac=config.channel_mac,
        channel_port=22005,
        uid=0,
        ready_marker="POLYDEV-READY 0123",
    )
    return spec, keys


@pytest.fixture
async def launch(tmp_path: Path) -> AsyncIterator[Launch]:
    running: list[tuple[SimulatedVmm, Channel]] = []

    async def start(
        kind: MachineKind = MachineKind.CLI, simulation: Simulation | None = None
    ) -> tuple[SimulatedVmm, Channel]:
        folder = tmp_path / f"vm-{len(running)}"
        folder.mkdir()
        spec, keys = await spec_in(folder, kind)
        vmm = await SimulatedDriver(simulation).launch(spec)
        await vmm.wait_ready()
        channel = Channel(
            vmm.open_channel,
            keys.host_public,
            keys.client_private.decode(),
            ChannelLimits(connect_s=5, end_grace_s=1),
        )
        running.append((vmm, channel))
        return vmm, channel

    yield start
    for vmm, channel in running:
        await channel.close()
        await vmm.kill()


async def http(
    channel: Channel | DirectChannel, method: str, path: str, body: object = None
) -> tuple[int, Any]:
    """Send one request to the browser service through the channel."""
    content = b"" if body is None else json.dumps(body).encode()
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nConnection: close\r\n"
        f"Authorization: Bearer {TOKEN}\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    stream = await channel.open_tcp(8080)
    await stream.write(head.encode() + content)
    answer = b""
    while data := await stream.read(65536):
        answer += data
    await stream.close()
    status, _, rest = answer.partition(b"\r\n")
    return int(status.split()[1]), json.loads(rest.partition(b"\r\n\r\n")[2])


async def test_prints_the_ready_marker(launch: Launch, tmp_path: Path) -> None:
    await launch()
    assert "POLYDEV-READY 0123\n" in (tmp_path / "vm-0/console.log").read_text()


async def test_runs_programs_and_returns_exit_codes(launch: Launch) -> None:
    _, channel = await launch()
    assert (await channel.run(["true"])).exit_code == 0
    unknown = await channel.run(["no-such-program"])
    assert unknown.exit_code == 127
    assert unknown.stderr


async def test_carries_input_and_output(launch: Launch) -> None:
    _, channel = await launch()
    async with await channel.exec(ExecRequest(argv=["cat"], env={"A": "b; c 'd'"})) as cat:
        await cat.write(b"one")
        assert await cat.read() == (STDOUT, b"one")
        await cat.write_eof()
        assert await cat.read() is None
        assert await cat.wait() == 0


async def test_an_abandoned_program_is_ended(launch: Launch) -> None:
    _, channel = await launch()
    sleep = await channel.exec(ExecRequest(argv=["sleep", "1000"]))
    await sleep.close()
    assert await sleep.wait() == 128 + 15


async def test_files_are_written_read_and_removed(launch: Launch, tmp_path: Path) -> None:
    _, channel = await launch()
    file = GuestFile("/root/.codex/auth.json", b"{}", mode=0o600)
    await channel.write_files([file, GuestFile(file.path, b"other", if_absent=True)])
    assert await channel.read_file(file.path, 10) == b"{}"
    there = tmp_path / "vm-0/simulated-root/root/.codex"
    assert there.stat().st_mode & 0o777 == 0o700
    assert [entry.name for entry in there.iterdir()] == ["auth.json"]
    assert (there / "auth.json").stat().st_mode & 0o777 == 0o600
    with pytest.raises(GuestMisbehaved):
        await channel.read_file(file.path, 1)
    await channel.remove_files([file.path, file.path])
    with pytest.raises(NoSuchFile):
        await channel.read_file(file.path, 10)


@pytest.mark.parametrize("provider_id", providers.provider_ids())
async def test_a_login_gives_credentials_that_the_other_machine_accepts(
    launch: Launch, provider_id: str
) -> None:
    provider = providers.provider(provider_id)
    _, browser = await launch(MachineKind.BROWSER)
    _, cli = await launch(MachineKind.CLI)
    assert (await http(browser, "GET", "/health"))[1]["status"] == "ok"
    session = {"sessionId": "6f1c1c0e-0000-4000-8000-000000000000"}
    assert (await http(browser, "POST", f"/auth/{provider_id}", session))[0] == 202
    _, urls = await http(browser, "GET", f"/auth/{provider_id}/oauth-url?wait=5")
    providers.check_oauth_url(provider, urls["url"])
    _, outcome = await http(browser, "GET", f"/auth/{provider_id}/credentials/status?wait=5")
    assert outcome["ready"]
    credentials = providers.check_credentials(provider, outcome["credentials"])
    assert (await cli.run(provider.status_argv)).exit_code == 1
    await cli.write_files(providers.plan_install(provider, CredentialKind.LOGIN, credentials).files)
    assert (await cli.run(provider.status_argv)).exit_code == 0


@pytest.mark.parametrize("provider_id", providers.provider_ids())
async def test_a_chat_turn_is_answered_as_the_real_cli_answers(
    launch: Launch, provider_id: str
) -> None:
    provider = providers.provider(provider_id)
    _, cli = await launch()
    assert [event.kind for event in await turn(cli, provider)][-1] == "error"
    await cli.write_files(providers.plan_install(provider, CredentialKind.LOGIN, b"{}").files)
    events = await turn(cli, provider)
    assert "hello" in "".join(event.text for event in events)
    assert "error" not in [event.kind for event in events]


async def turn(cli: Channel, provider: providers.Provider) -> list[providers.ChatEvent]:
    reader = providers.AnswerReader(provider.chat.output)
    events: list[providers.ChatEvent] = []
    async with await cli.exec(ExecRequest(argv=list(provider.chat.argv))) as process:
        await process.write(b"hello")
        await process.write_eof()
        while (chunk := await process.read()) is not None:
            stream, data = chunk
            if stream != STDERR:
                events.extend(reader.feed(data))
    return [*events, *reader.close()]


async def test_unfinished_login_accepts_a_pasted_code(launch: Launch) -> None:
    _, browser = await launch(MachineKind.BROWSER, Simulation(login_end=LoginEnd.NEVER))
    await http(browser, "POST", "/auth/claude_code", {"sessionId": "s"})
    _, before = await http(browser, "GET", "/auth/claude_code/credentials/status")
    assert not before["ready"]
    status, _ = await http(browser, "POST", "/auth/claude_code/input", {"code": "a#b"})
    assert status == 202
    _, after = await http(browser, "GET", "/auth/claude_code/credentials/status?wait=5")
    assert after["ready"]


async def test_another_token_is_refused(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    _, browser = await launch(MachineKind.BROWSER)
    monkeypatch.setattr(f"{__name__}.TOKEN", "another")
    assert (await http(browser, "GET", "/auth/codex/oauth-url"))[0] == 401


async def test_cli_machine_has_no_ports(launch: Launch) -> None:
    _, channel = await launch()
    with pytest.raises(ChannelLost):
        await channel.open_tcp(8080)


async def test_poweroff_ends_it(launch: Launch) -> None:
    vmm, channel = await launch()
    async with await channel.exec(ExecRequest(argv=["poweroff"])) as program:
        async with asyncio.timeout(5):
            assert (await vmm.wait()).status == 0
        del program
    with pytest.raises(ChannelLost):
        await vmm.open_channel()


async def test_kill_before_ready_is_reported(tmp_path: Path) -> None:
    spec, _ = await spec_in(tmp_path, MachineKind.CLI)
    vmm = await SimulatedDriver(Simulation(becomes_ready=False)).launch(spec)
    waiting = asyncio.create_task(vmm.wait_ready())
    await asyncio.sleep(0)
    await vmm.kill()
    await vmm.kill()
    with pytest.raises(VmmFailed):
        await waiting


async def test_files_survive_a_restart(launch: Launch, tmp_path: Path) -> None:
    vmm, channel = await launch()
    await channel.write_files([GuestFile("/root/kept", b"x")])
    await vmm.kill()
    folder = tmp_path / "vm-0"
    spec, keys = await spec_in(folder, MachineKind.CLI)
    again = await SimulatedDriver().launch(spec)
    reopened = Channel(again.open_channel, keys.host_public, keys.client_private.decode())
    assert await reopened.read_file("/root/kept", 10) == b"x"
    await reopened.close()
    await again.kill()
