"""Builds and clones that fail or are cancelled at any step leave nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from warm_host import (
    StepFault,
    WarmHost,
    browser_request,
    create_and_destroy,
    step_parameters,
    until,
    until_template_ready,
)

from polydev.hostagent.channel import Channel
from polydev.hostagent.machines.record import MachineFolder
from polydev.hostagent.machines.service import MachineService
from polydev.hostagent.snapshots import SnapshotWriter
from polydev.hostagent.warm_pool import guest_scripts
from polydev.shared.domain import MachineSize
from polydev.shared.errors import MachineBusy
from polydev.testing.simulated_vmm import SimulatedDriver, SimulatedProvisioner, SimulatedVmm

SHAPE = MachineSize(2048, 2, 6144)
MAKING: list[tuple[Any, str]] = [
    (SimulatedProvisioner, "boot_files"),
    (SimulatedProvisioner, "make_disk"),
    (SimulatedProvisioner, "write_config"),
    (SimulatedDriver, "fingerprint"),
    (SimulatedDriver, "launch"),
    (SimulatedVmm, "wait_ready"),
    (guest_scripts, "settle"),
    (SimulatedVmm, "save"),
    (SnapshotWriter, "end"),
    (SimulatedProvisioner, "save_disk"),
]
CLONING: list[tuple[Any, str]] = [
    (SimulatedProvisioner, "write_config"),
    (SimulatedProvisioner, "clone_disk"),
    (SimulatedDriver, "restore"),
    (SimulatedVmm, "resume"),
    (guest_scripts, "renew"),
    (Channel, "connect"),
    (SimulatedProvisioner, "foreign_channel"),
]


async def _ended(work: asyncio.Task[Any]) -> None:
    work.cancel()
    await asyncio.wait({work}, timeout=10)
    assert work.done()


@pytest.mark.parametrize(("owner", "name"), **step_parameters(MAKING))
async def test_failed_template_build_leaves_nothing_and_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    host = WarmHost(tmp_path)
    async with host.running_agent() as machines:
        fault = StepFault(monkeypatch, owner, name)
        await machines.clones.request_template(SHAPE)
        await fault.reached.wait()

        async def is_reported() -> bool:
            return "No room" in (await machines.clones.view()).words

        await until(is_reported)
        assert host.is_empty
        assert not host.templates
        await machines.clones.request_template(SHAPE)
        await until_template_ready(machines)
        assert (await create_and_destroy(machines)).is_clone


@pytest.mark.parametrize(
    ("owner", "name"),
    **step_parameters([step for step in MAKING if step[1] not in ("boot_files", "make_disk")]),
)
async def test_cancelled_template_build_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    host = WarmHost(tmp_path)
    async with host.agent() as machines:
        making = asyncio.create_task(machines.clones.run())
        fault = StepFault(monkeypatch, owner, name)
        fault.hangs = name not in _BOUNDED
        await machines.clones.request_template(SHAPE)
        await fault.reached.wait()
        await _ended(making)
        assert host.is_empty
        assert not host.templates


_BOUNDED = ("write_config", "save_disk", "clone_disk")
"""Steps that run in a thread, which cannot be cancelled: they must not hang."""


@pytest.mark.parametrize(("owner", "name"), **step_parameters(CLONING))
async def test_failed_clone_is_booted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    host = WarmHost(tmp_path)
    async with host.running_agent() as machines:
        await _build_one_template(machines)
        StepFault(monkeypatch, owner, name)
        asked = browser_request()
        view = await machines.create(asked)
        assert not view.is_clone
        assert len(list((host.root / "machines").iterdir())) == 1
        await machines.destroy(asked.vm_id)
        assert (await create_and_destroy(machines)).is_clone
    assert host.is_empty


@pytest.mark.parametrize(
    ("owner", "name"), **step_parameters([step for step in CLONING if step[1] not in _BOUNDED])
)
async def test_cancelled_clone_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    host = WarmHost(tmp_path)
    async with host.running_agent() as machines:
        await _build_one_template(machines)
        fault = StepFault(monkeypatch, owner, name)
        fault.hangs = True
        asked = browser_request()
        creating = asyncio.create_task(machines.create(asked))
        await fault.reached.wait()
        await machines.destroy(asked.vm_id)
        with pytest.raises(MachineBusy):
            await creating
        assert host.is_empty
        assert (await create_and_destroy(machines)).is_clone


async def test_incomplete_template_is_never_found(tmp_path: Path) -> None:
    host = WarmHost(tmp_path)
    async with host.running_agent() as machines:
        await _build_one_template(machines)
        [template] = host.templates
        folder = MachineFolder(template.parent, template.name)
        folder.disk.unlink()
        (template / "template.json").unlink()
        assert not (await create_and_destroy(machines)).is_clone


async def _build_one_template(machines: MachineService) -> None:
    await machines.clones.request_template(SHAPE)
    await until_template_ready(machines)
