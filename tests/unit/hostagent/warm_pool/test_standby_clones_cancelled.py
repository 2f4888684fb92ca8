"""Standby clones that fail or are cancelled at any step leave nothing."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from machine_parts import InMemoryNetwork
from warm_host import (
    LIMIT_S,
    PLENTY,
    SHAPE,
    SlowThread,
    StepFault,
    WarmHost,
    browser_request,
    build_template,
    create_and_destroy,
    standby_ids,
    status_of,
    step_parameters,
    until,
    until_standby,
    with_standby,
)

from polydev.hostagent.machines.record import MachineFolder, MachineRecord
from polydev.hostagent.machines.service import MachineService
from polydev.hostagent.provisioning import config_drive
from polydev.hostagent.vmm.console import BoundedLog
from polydev.hostagent.warm_pool import guest_scripts
from polydev.shared.domain import MachineState
from polydev.shared.errors import MachineBusy
from polydev.testing.simulated_vmm import (
    SimulatedDriver,
    SimulatedProvisioner,
    SimulatedVmm,
    provisioner,
)
from polydev.testing.simulated_vmm.memory import Memory


@pytest.fixture
def host(tmp_path: Path) -> WarmHost:
    return WarmHost(tmp_path, waiting=1)


MAKING: list[tuple[Any, str]] = [
    (SimulatedProvisioner, "write_config"),
    (SimulatedProvisioner, "clone_disk"),
    (SimulatedDriver, "restore"),
    (guest_scripts, "renew"),
    (guest_scripts, "wait_first_paint"),
    (guest_scripts, "start_rename"),
    (SimulatedVmm, "pause"),
]
TAKING: list[tuple[Any, str]] = [
    (InMemoryNetwork, "rename"),
    (SimulatedProvisioner, "write_config"),
    (SimulatedVmm, "resume"),
    (guest_scripts.Script, "send"),
    (guest_scripts.Script, "wait"),
]
WRITING: list[tuple[Any, str]] = [
    (MachineFolder, "write_token"),
    (config_drive, "_write"),
    (provisioner, "_copy_simulated"),
    (BoundedLog, "append"),
    (Memory, "restored"),
]
_BOUNDED = ("write_config", "clone_disk", "rename")
"""Steps that are shielded from cancellation, and so must not hang."""


@asynccontextmanager
async def about_to_make_one(host: WarmHost) -> AsyncIterator[MachineService]:
    """Start an agent with a template and no standby clone."""
    await build_template(host)
    host.waiting = 1
    async with host.running_agent() as machines:
        yield machines


@pytest.mark.parametrize(("owner", "name"), **step_parameters(MAKING))
async def test_failed_creation_of_a_clone_leaves_nothing(
    host: WarmHost, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    async with about_to_make_one(host) as machines:
        fault = StepFault(monkeypatch, owner, name)
        await fault.reached.wait()

        async def is_reported() -> bool:
            return fault.is_done and host.is_empty

        await until(is_reported)
        await machines.clones.request_template(SHAPE)
        await until_standby(machines)
        assert (await create_and_destroy(machines)).is_clone
    assert host.is_empty


@pytest.mark.parametrize(
    ("owner", "name"), **step_parameters([step for step in MAKING if step[1] not in _BOUNDED])
)
async def test_cancelled_creation_of_a_clone_leaves_nothing(
    host: WarmHost, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    async with about_to_make_one(host):
        fault = StepFault(monkeypatch, owner, name)
        fault.hangs = True
        await fault.reached.wait()
    assert host.is_empty


@pytest.mark.parametrize(("owner", "name"), **step_parameters(WRITING))
async def test_files_of_a_running_thread_are_removed_at_the_agents_end(
    host: WarmHost, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    async with about_to_make_one(host):
        slow = SlowThread(monkeypatch, owner, name)
        await asyncio.to_thread(slow.reached.wait, LIMIT_S)
        asyncio.get_running_loop().call_later(0.1, slow.goes_on.set)
    await asyncio.to_thread(slow.ended.wait, LIMIT_S)
    assert host.is_empty


@pytest.mark.parametrize(("owner", "name"), **step_parameters(TAKING))
async def test_failed_take_clones_again(
    host: WarmHost, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    async with with_standby(host) as machines:
        [waiting] = standby_ids(machines)
        StepFault(monkeypatch, owner, name)
        asked = browser_request()
        view = await machines.create(asked)
        assert view.is_clone
        assert await status_of(machines, asked.vm_id, "the clone's") == b"404"
        assert waiting not in (await machines.inventory()).folders
        await machines.destroy(asked.vm_id)
    assert host.is_empty


@pytest.mark.parametrize(
    ("owner", "name"), **step_parameters([step for step in TAKING if step[1] not in _BOUNDED])
)
async def test_cancelled_take_leaves_nothing(
    host: WarmHost, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    async with with_standby(host) as machines:
        host.meminfo.write_text(PLENTY)
        fault = StepFault(monkeypatch, owner, name)
        fault.hangs = True
        asked = browser_request()
        creating = asyncio.create_task(machines.create(asked))
        await fault.reached.wait()
        await machines.destroy(asked.vm_id)
        with pytest.raises(MachineBusy):
            await creating
        assert asked.vm_id not in (await machines.inventory()).folders
        await until_standby(machines)
        assert (await create_and_destroy(machines)).is_clone
    assert host.is_empty


@pytest.mark.parametrize("moment", ["waiting", "named", "set aside", "renamed"])
async def test_killed_agent_leaves_nothing(host: WarmHost, moment: str) -> None:
    """The simulated VMM ends with the agent; a real one is an orphan without a folder."""
    asked = browser_request()
    machines_dir = host.root / "machines"
    async with with_standby(host) as machines:
        [waiting] = standby_ids(machines)
        folder = machines_dir / waiting
        record = MachineFolder(machines_dir, waiting).read()
        assert record is not None
        left = host.root / "left"
        shutil.copytree(folder, left)
    shutil.copytree(left, folder)
    mine = record.updated(vm_id=asked.vm_id, state=MachineState.CREATING)
    if moment != "waiting":
        MachineFolder(machines_dir, asked.vm_id).write(mine)
        MachineFolder(machines_dir, waiting).record.write_text(mine.model_dump_json())
    if moment == "set aside":
        (machines_dir / asked.vm_id).rename(folder / ".before")
    if moment == "renamed":
        shutil.rmtree(machines_dir / asked.vm_id)
        folder.rename(machines_dir / asked.vm_id)
    host.waiting = 0
    async with host.running_agent() as machines:
        assert not machines.views()
        assert host.is_empty
        assert (await create_and_destroy(machines, asked)).is_clone


def test_failed_folder_rename_keeps_the_other_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = MachineFolder(tmp_path, "vm-old"), MachineFolder(tmp_path, "vm-new")
    old.write(_record("vm-old"))
    new.write(_record("vm-new"))
    new.write_token("its own")
    real = Path.rename

    def rename(path: Path, target: Path) -> Path:
        if path == old.path:
            raise OSError("no more")
        return real(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="no more"):
        old.replace_folder_of(_record("vm-new"))
    assert new.read_token() == "its own"
    assert new.read() == _record("vm-new")


def _record(vm_id: str) -> MachineRecord:
    asked = browser_request()
    return MachineRecord(
        vm_id=vm_id,
        machine_kind=asked.machine_kind,
        **asked.size.fields(),
        labels={},
        state=MachineState.CREATING,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        uid=1,
    )
