"""A simulated machine's channel without SSH behaves like the SSH one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import asyncssh
import pytest
from test_simulated_machine import http, spec_in

from polydev.hostagent.channel import Channel
from polydev.shared.domain import GuestFile, MachineKind
from polydev.shared.errors import BadPath, ChannelLost, GuestMisbehaved, NoSuchFile
from polydev.shared.host_protocol import STDERR, STDOUT, ExecRequest
from polydev.testing.simulated_vmm import SimulatedDriver, SimulatedVmm, Simulation
from polydev.testing.simulated_vmm.direct_channel import DirectChannel


@pytest.fixture
async def vmm(tmp_path: Path) -> AsyncIterator[SimulatedVmm]:
    spec, _ = await spec_in(tmp_path, MachineKind.BROWSER)
    made = await SimulatedDriver(Simulation(channel="direct")).launch(spec)
    await made.wait_ready()
    yield made
    await made.kill()


@pytest.fixture
async def channel(vmm: SimulatedVmm) -> DirectChannel:
    found = vmm.direct_channel(over_ssh(vmm))
    assert found is not None
    return found


def over_ssh(vmm: SimulatedVmm) -> Channel:
    """A channel that is not used here."""
    key = asyncssh.generate_private_key("ssh-ed25519")
    public, private = key.export_public_key().decode(), key.export_private_key().decode()
    return Channel(vmm.open_channel, public, private)


async def test_programs_read_print_and_exit(channel: DirectChannel) -> None:
    cat = await channel.exec(ExecRequest(argv=["cat"]))
    await cat.write(b"one")
    assert await cat.read() == (STDOUT, b"one")
    await cat.write_eof()
    assert await cat.read() is None
    assert await cat.wait() == 0

    unknown = await channel.exec(ExecRequest(argv=["no-such-program"]))
    output = await unknown.read()
    assert output is not None
    assert output[0] == STDERR
    assert await unknown.read() is None
    assert await unknown.wait() == 127

    sleep = await channel.exec(ExecRequest(argv=["sleep", "1000"]))
    await sleep.close()
    async with asyncio.timeout(5):
        assert await sleep.wait() == 128 + 15


async def test_files_are_written_read_and_removed(channel: DirectChannel) -> None:
    await channel.write_files([GuestFile("/root/.codex/auth.json", b"{}")])
    await channel.write_files([GuestFile("/root/.codex/auth.json", b"[]", if_absent=True)])
    assert await channel.read_file("/root/.codex/auth.json", 2) == b"{}"
    with pytest.raises(GuestMisbehaved):
        await channel.read_file("/root/.codex/auth.json", 1)
    await channel.remove_files(["/root/.codex/auth.json", "/root/none"])
    with pytest.raises(NoSuchFile):
        await channel.read_file("/root/.codex/auth.json", 2)
    with pytest.raises(BadPath):
        await channel.read_file("/root/../../console.log", 10)


async def test_the_browser_service_answers_and_nothing_else_does(channel: DirectChannel) -> None:
    assert (await http(channel, "GET", "/health"))[0] == 200
    with pytest.raises(ChannelLost):
        await channel.open_tcp(5999)


async def test_ended_machine_refuses_everything(vmm: SimulatedVmm, channel: DirectChannel) -> None:
    await vmm.kill()
    with pytest.raises(ChannelLost):
        await channel.exec(ExecRequest(argv=["true"]))
    with pytest.raises(ChannelLost):
        await channel.read_file("/root/x", 1)


async def test_direct_channel_is_opt_in(tmp_path: Path) -> None:
    spec, _ = await spec_in(tmp_path, MachineKind.CLI)
    made = await SimulatedDriver().launch(spec)
    assert made.direct_channel(over_ssh(made)) is None
    await made.kill()
