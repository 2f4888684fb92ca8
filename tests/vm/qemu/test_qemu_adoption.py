"""Test the adoption of QEMU machines by another agent."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from driver_worlds import STAY, QemuWorld, leftover_files, qemu_world, script_spec, until

from polydev.hostagent.vmm.contract import LaunchSpec

pytestmark = pytest.mark.vm
READY_S = 240
SLEEP = "import time; time.sleep(600)"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[QemuWorld]:
    async with qemu_world(tmp_path) as it:
        yield it


_OTHER_AGENT = """
import asyncio, dataclasses, pickle, sys
from driver_worlds import QemuDriver, boot_files
async def main():
    machines_dir, cache_dir, spec = pickle.load(sys.stdin.buffer)
    driver = QemuDriver(machines_dir=machines_dir, cache_dir=cache_dir, boot_files=boot_files,
                        accelerator="tcg")
    vmm = await driver.launch(spec)
    print(vmm.pid, flush=True)
    await vmm.wait_ready()
    print("ready", flush=True)
    await asyncio.sleep(3600)
asyncio.run(main())
"""


async def other_agent(world: QemuWorld, spec: LaunchSpec) -> asyncio.subprocess.Process:
    """Start another process that launches and watches a machine."""
    import pickle

    agent = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _OTHER_AGENT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert agent.stdin is not None
    agent.stdin.write(pickle.dumps((world.machines_dir, world.folder / "cache", spec)))
    agent.stdin.close()
    return agent


async def test_machine_survives_its_agent_and_is_adopted_by_the_next(world: QemuWorld) -> None:
    init = "echo {marker}\ni=0\nwhile true; do echo tick $i; i=$((i + 1)); sleep 0.2; done\n"
    spec = await script_spec(world, init)
    agent = await other_agent(world, spec)
    assert agent.stdout is not None
    async with asyncio.timeout(READY_S):
        pid = int(await agent.stdout.readline())
        assert await agent.stdout.readline() == b"ready\n"
    agent.kill()
    await agent.wait()
    log = spec.folder / "console.log"
    assert log.exists()
    vmm = await world.driver.adopt(spec)
    assert vmm is not None
    assert vmm.pid == pid
    before = log.read_bytes().count(b"tick")
    await until(lambda: log.read_bytes().count(b"tick") > before + 3)
    await vmm.kill()
    assert leftover_files(spec.folder) == set()
    assert world.pids() == []


async def test_agent_killed_during_launch_leaves_whole_machine_or_none(
    world: QemuWorld,
) -> None:
    for delay_s in (0.0, 0.01, 0.03, 0.06):
        spec = await script_spec(world, STAY)
        agent = await other_agent(world, spec)
        await until(world.pids, every_s=0.001)
        await asyncio.sleep(delay_s)
        agent.kill()
        await agent.wait()
        vmm = await world.driver.adopt(spec)
        if vmm is not None:
            assert world.pids() == [vmm.pid]
            await vmm.kill()
        assert world.pids() == []
        assert leftover_files(spec.folder) == set()


async def test_paused_guest_is_adopted_and_continues(world: QemuWorld) -> None:
    spec = await script_spec(world, STAY)
    vmm = await world.driver.launch(spec)
    await vmm._session.qmp.execute("stop")
    await vmm.detach()
    adopted = await world.driver.adopt(spec)
    assert adopted is not None
    assert (await adopted._session.qmp.execute("query-status"))["status"] == "paused"
    await adopted.resume()
    assert (await adopted._session.qmp.execute("query-status"))["status"] == "running"
    await adopted.kill()
    assert world.pids() == []
    assert leftover_files(spec.folder) == set()


@pytest.mark.parametrize("lie", ["another process", "another start", "another boot", "nonsense"])
async def test_another_process_is_never_mistaken_for_the_vmm(world: QemuWorld, lie: str) -> None:
    spec = await script_spec(world, STAY)
    vmm = await world.driver.launch(spec)
    identity = json.loads((spec.folder / "vmm.json").read_text())
    await vmm.kill()
    bystander = subprocess.Popen([sys.executable, "-c", SLEEP, spec.vm_id])
    ticks = Path(f"/proc/{bystander.pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    forged = {**identity, "pid": bystander.pid, "start_ticks": int(ticks)}
    if lie == "another process":
        bystander.kill()
        bystander.wait()
        bystander = subprocess.Popen([sys.executable, "-c", SLEEP])
        forged["pid"] = bystander.pid
    elif lie == "another start":
        forged["start_ticks"] += 1
    elif lie == "another boot":
        forged["boot_id"] = "00000000-0000-4000-8000-000000000000"
    text = "{" if lie == "nonsense" else json.dumps(forged)
    (spec.folder / "vmm.json").write_text(text)
    try:
        assert await world.driver.adopt(spec) is None
        assert bystander.poll() is None
        assert leftover_files(spec.folder) == set()
    finally:
        bystander.kill()
        bystander.wait()
