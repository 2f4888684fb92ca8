"""A hibernated CLI machine, booted once; each test resumes its own copy.

Under emulation, a boot takes ten times as long as a resume. The product's code saves and resumes
the machine; a copy is a host agent's state folder and the key of the saved memory.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from agent_process import AgentProcess, agent_world

from polydev.hostagent.snapshots import MemoryKeys
from polydev.shared.domain import MachineKind, MachineState, VmId, new_vm_id
from polydev.shared.host_client import HostClient
from polydev.shared.host_protocol import (
    CreateMachine,
    HibernateMachine,
    HostMachineView,
    ResumeMachine,
)

IMAGES = os.environ.get("POLYDEV_IMAGES_DIR", "/var/cache/polydev/golden-images")
LIMIT_S = 240


@dataclass(frozen=True)
class SavedMachine:
    """An ended agent's state folder with one hibernated machine, and its memory key."""

    folder: Path

    @property
    def vm_id(self) -> VmId:
        [machine] = (self.folder / "state" / "machines").iterdir()
        return VmId(machine.name)

    def put_into(self, state_dir: Path, keys_dir: Path) -> None:
        """Copy it into the state folder of an agent that has not started."""
        _copy(self.folder / "state", state_dir)
        keys = MemoryKeys.for_state(state_dir, keys_dir)
        keys.load_or_create()
        [key] = keys_dir.glob("*/memory.key")
        shutil.copyfile(self.folder / "memory.key", key)

    def put_probe_into(self, state_dir: Path) -> None:
        """Copy the cached driver probe, which otherwise takes a boot."""
        state_dir.mkdir()
        _copy(self.folder / "state" / "cache", state_dir / "cache")


def saved_once(shared: Path) -> SavedMachine:
    """The saved machine of a test run; the first process creates it."""
    shared.mkdir(exist_ok=True)
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "made").exists():
            shutil.rmtree(shared / "new", ignore_errors=True)
            asyncio.run(_save(shared / "new"))
            (shared / "new").rename(shared / "made")
    return SavedMachine(shared / "made")


async def _save(folder: Path) -> None:
    async with agent_world(POLYDEV_DRIVER="auto", POLYDEV_IMAGES_DIR=IMAGES) as agent:
        await agent.start()
        async with agent.host() as host:
            vm_id = new_vm_id()
            created = CreateMachine(
                vm_id=vm_id,
                machine_kind=MachineKind.CLI,
                memory_mib=512,
                vcpus=1,
                disk_mib=256,
                ready_timeout_s=LIMIT_S,
            )
            await host.run("create", created, LIMIT_S)
            await host.run("hibernate", HibernateMachine(vm_id=vm_id), LIMIT_S)
        await agent.end()
        folder.mkdir()
        _copy(agent.state_dir, folder / "state")
        for name in ("sockets", "operations", "logs"):
            shutil.rmtree(folder / "state" / name, ignore_errors=True)
        [key] = agent.state_dir.parent.glob("*/memory.key")
        shutil.copyfile(key, folder / "memory.key")


def _copy(source: Path, target: Path) -> None:
    """Copy with owners and holes, since disks are mostly empty."""
    subprocess.run(["cp", "-a", "--sparse=always", f"{source}/.", target], check=True)


@dataclass(frozen=True)
class Resumed:
    """A running machine with its host agent."""

    agent: AgentProcess
    host: HostClient
    view: HostMachineView

    @property
    def vm_id(self) -> VmId:
        return VmId(self.view.vm_id)


@asynccontextmanager
async def resumed_machine(saved: SavedMachine) -> AsyncIterator[Resumed]:
    """Resume a copy of the saved machine under a new agent."""
    async with agent_world(POLYDEV_DRIVER="auto", POLYDEV_IMAGES_DIR=IMAGES) as agent:
        saved.put_into(agent.state_dir, agent.state_dir.parent)
        await agent.start()
        async with agent.host() as host:
            resuming = ResumeMachine(vm_id=saved.vm_id, ready_timeout_s=LIMIT_S)
            view = await host.run("resume", resuming, LIMIT_S)
            assert view is not None
            assert view.state is MachineState.RUNNING
            assert view.wake is not None
            assert view.wake.how == "resumed", view.wake.reason
            yield Resumed(agent, host, view)
