"""The warm pool on a simulated host: machines that are cloned, and machines that boot."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest
from warm_host import (
    NEXT_TO_NOTHING,
    PLENTY,
    WarmHost,
    browser_request,
    create_and_destroy,
    status_of,
    until,
    until_template_ready,
)

from polydev.hostagent.machines.service import MachineService
from polydev.hostagent.warm_pool import warm_pool
from polydev.shared.domain import MachineKind, MachineSize, new_vm_id
from polydev.shared.errors import MachineBusy
from polydev.shared.host_protocol import CreateMachine, ExecRequest
from polydev.testing.simulated_vmm import Simulation

SHAPE = MachineSize(2048, 2, 6144)


@pytest.fixture
def host(tmp_path: Path) -> WarmHost:
    return WarmHost(tmp_path)


async def build_one_template(machines: MachineService) -> None:
    await machines.clones.request_template(SHAPE)
    await until_template_ready(machines)


async def test_first_browser_machine_boots_and_the_next_is_cloned(host: WarmHost) -> None:
    async with host.running_agent() as machines:
        assert not (await create_and_destroy(machines)).is_clone
        await until_template_ready(machines)
        assert (await create_and_destroy(machines)).is_clone
        assert (await create_and_destroy(machines)).is_clone, "a template serves several clones"
    assert host.is_empty
    assert len(host.templates) == 1


async def test_clone_has_its_own_token_and_keys(host: WarmHost) -> None:
    async with host.running_agent() as machines:
        await build_one_template(machines)
        first, second = browser_request(token="one"), browser_request(token="two")
        views = await asyncio.gather(machines.create(first), machines.create(second))
        assert all(view.is_clone for view in views)
        assert len({view.mac for view in views}) == 2
        assert len({view.ip_address for view in views}) == 2
        assert await status_of(machines, first.vm_id, "one") == b"404"
        assert await status_of(machines, first.vm_id, "two") == b"401"
        assert await status_of(machines, second.vm_id, "two") == b"404"
        keys = [
            (folder / "keys" / "ssh_host_ed25519_key").read_bytes()
            for folder in (*host.templates, *(host.root / "machines").iterdir())
        ]
        assert len(set(keys)) == len(keys) == 3
        program = await machines.exec(second.vm_id, ExecRequest(argv=["true"]))
        assert await program.wait() == 0
        for asked in (first, second):
            await machines.destroy(asked.vm_id)


async def test_another_agent_adopts_the_template(host: WarmHost) -> None:
    async with host.running_agent() as machines:
        await build_one_template(machines)
    async with host.running_agent() as machines:
        assert (await create_and_destroy(machines)).is_clone


async def test_only_browser_machines_of_its_shape_are_cloned(host: WarmHost) -> None:
    async with host.running_agent() as machines:
        await build_one_template(machines)
        cli = CreateMachine(
            vm_id=new_vm_id(),
            machine_kind=MachineKind.CLI,
            memory_mib=2048,
            vcpus=2,
            disk_mib=6144,
        )
        assert not (await create_and_destroy(machines, cli)).is_clone
        assert not (await create_and_destroy(machines, browser_request(memory_mib=4096))).is_clone
        await until_template_ready(machines)
        assert (await create_and_destroy(machines, browser_request(memory_mib=4096))).is_clone
        assert len(host.templates) == 1, "the template of the other size replaced it"


async def test_template_of_other_settings_is_not_used(host: WarmHost) -> None:
    async with host.running_agent() as machines:
        await build_one_template(machines)
    host.settings = {"dns": "10.0.0.1"}
    async with host.agent() as machines:
        assert (await machines.clones.view()).state == "none"
        assert not (await create_and_destroy(machines)).is_clone


async def test_host_restart_discards_a_template(host: WarmHost) -> None:
    async with host.running_agent() as machines:
        await build_one_template(machines)
    [template] = host.templates
    for key in (host.root / "keys").rglob("*.key"):
        key.unlink()
    host.quiet_s = 3600
    async with host.running_agent() as machines:

        async def is_gone() -> bool:
            return not template.exists()

        await until(is_gone)
        assert not (await create_and_destroy(machines)).is_clone


@pytest.mark.parametrize("what", ["not renewed", "cut short", "memory gone"])
async def test_failed_clones_boot_and_two_failures_discard_the_template(
    host: WarmHost, what: str
) -> None:
    async with host.running_agent() as machines:
        await build_one_template(machines)
    [template] = host.templates
    host.quiet_s = 3600
    if what == "not renewed":
        host.simulation = Simulation(renews=False)
    elif what == "cut short":
        (template / "memory").write_bytes((template / "memory").read_bytes()[:-1])
    else:
        (template / "memory").unlink()
    async with host.agent() as machines:
        asked = browser_request()
        assert not (await machines.create(asked)).is_clone
        assert await status_of(machines, asked.vm_id, "the clone's") == b"404"
        assert template.exists()
        await machines.destroy(asked.vm_id)
        assert not (await create_and_destroy(machines)).is_clone
        assert not template.exists()
        assert not host.templates
    assert host.is_empty


async def test_hanging_clone_leaves_time_to_boot(
    host: WarmHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm_pool, "_CLONE_SHARE", 1 / 100)  # or it would take half of the time
    async with host.running_agent() as machines:
        await build_one_template(machines)
    host.simulation = Simulation(renew_s=60)
    async with host.agent() as machines:
        asked = browser_request().model_copy(update={"ready_timeout_s": 60})
        assert not (await create_and_destroy(machines, asked)).is_clone
    assert host.is_empty


async def test_clone_destroyed_during_creation_leaves_nothing(host: WarmHost) -> None:
    async with host.running_agent() as machines:
        await build_one_template(machines)
    host.simulation = Simulation(renew_s=60)
    async with host.agent() as machines:
        asked = browser_request()
        creating = asyncio.create_task(machines.create(asked))

        async def is_restored() -> bool:
            return any((host.root / "machines" / asked.vm_id).glob("*/run/boot_id"))

        await until(is_restored)
        await machines.destroy(asked.vm_id)
        with pytest.raises(MachineBusy):
            await creating
        assert host.is_empty
        assert len(host.templates) == 1


async def test_cancelled_template_build_leaves_nothing(host: WarmHost) -> None:
    host.simulation = Simulation(browser_s=60)
    async with host.running_agent() as machines:
        await machines.clones.request_template(SHAPE)

        async def is_building() -> bool:
            return bool((await machines.inventory()).folders)

        await until(is_building)
        [view] = machines.views()
        assert view.labels == {"purpose": "warm-template"}
        inventory = await machines.inventory()
        assert inventory.folders == [view.vm_id] == inventory.machines
        with pytest.raises(MachineBusy):
            await machines.exec(view.vm_id, ExecRequest(argv=["true"]))
    assert host.is_empty
    assert not host.templates


async def test_agent_killed_during_a_build_leaves_nothing(host: WarmHost) -> None:
    host.simulation = Simulation(browser_s=60)
    async with host.agent() as machines:
        killed = asyncio.create_task(machines.clones.run())
        await machines.clones.request_template(SHAPE)

        async def has_booted() -> bool:
            return bool(list((host.root / "machines").glob("*/simulated-root/run/boot_id")))

        await until(has_booted)
        draft = host.root / "warm" / ".new-0123456789abcdef"
        draft.mkdir()
        (draft / "memory").write_text("half")
        left = {path: path.read_bytes() for path in host.root.rglob("machine.json")}
        killed.cancel()
        await asyncio.wait({killed})
    for path, content in left.items():  # as it was when it was killed
        path.parent.mkdir()
        path.write_bytes(content)
    host.quiet_s = 3600
    async with host.running_agent() as machines:
        assert not machines.views()

        async def is_clean() -> bool:
            return not host.templates

        await until(is_clean)
    assert host.is_empty


async def test_no_template_is_built_without_headroom(host: WarmHost) -> None:
    host.meminfo.write_text(NEXT_TO_NOTHING)
    async with host.running_agent() as machines:
        await machines.clones.request_template(SHAPE)

        async def reports_reason() -> bool:
            return "MiB of memory are available" in (await machines.clones.view()).words

        await until(reports_reason)
        assert (await machines.clones.view()).state == "none"
        host.meminfo.write_text(PLENTY)
        await until_template_ready(machines)


async def test_build_is_cancelled_when_memory_runs_short(host: WarmHost) -> None:
    host.simulation = Simulation(browser_s=60)
    async with host.running_agent() as machines:
        await machines.clones.request_template(SHAPE)

        async def is_building() -> bool:
            return bool(machines.views())

        await until(is_building)
        host.meminfo.write_text(NEXT_TO_NOTHING)

        async def is_cancelled() -> bool:
            return "ran short of memory" in (await machines.clones.view()).words

        await until(is_cancelled)
        assert host.is_empty


async def test_no_template_is_built_during_a_login(host: WarmHost) -> None:
    host.quiet_s = 0.2
    async with host.running_agent() as machines:
        asked = browser_request()
        await machines.create(asked)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await until_template_ready(machines)
        assert not host.templates
        await machines.destroy(asked.vm_id)
        await until_template_ready(machines)


async def test_pool_can_be_switched_off(host: WarmHost) -> None:
    async with host.running_agent() as machines:
        await build_one_template(machines)
    host.is_on = False
    async with host.running_agent() as machines:
        assert (await machines.clones.view()).state == "off"
        assert not (await create_and_destroy(machines)).is_clone

        async def is_gone() -> bool:
            return not host.templates

        await until(is_gone)
