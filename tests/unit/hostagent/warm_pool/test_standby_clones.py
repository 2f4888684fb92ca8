"""Standby clones: assignment and eviction."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest
from warm_host import (
    NEXT_TO_NOTHING,
    PLENTY,
    SHAPE,
    CallCounter,
    StepFault,
    WarmHost,
    browser_request,
    build_template,
    create_and_destroy,
    standby_ids,
    status_of,
    until,
    until_standby,
    with_standby,
)

from polydev.hostagent.warm_pool import WarmPool, guest_scripts
from polydev.shared.domain import MachineKind, MachineState, new_vm_id
from polydev.shared.errors import MachineBusy, NoCapacity
from polydev.shared.host_protocol import CreateMachine, ExecRequest
from polydev.testing.simulated_vmm import Simulation

ENOUGH_FOR_NO_MORE = "MemAvailable:    2500000 kB\n"


@pytest.fixture
def host(tmp_path: Path) -> WarmHost:
    return WarmHost(tmp_path, waiting=1)


def _waiting_folders(host: WarmHost) -> list[Path]:
    records = (host.root / "machines").glob("*/machine.json")
    return [path for path in records if "warm-waiting" in path.read_text()]


def _host_key(host: WarmHost, vm_id: str) -> bytes:
    return (host.root / "machines" / vm_id / "keys" / "ssh_host_ed25519_key").read_bytes()


def _cli(memory_mib: int = 1024) -> CreateMachine:
    return CreateMachine(
        vm_id=new_vm_id(),
        machine_kind=MachineKind.CLI,
        memory_mib=memory_mib,
        vcpus=1,
        disk_mib=4096,
    )


async def test_login_takes_the_standby_clone(host: WarmHost) -> None:
    async with with_standby(host) as machines:
        [waiting] = machines.views()
        asked = browser_request(token="one").model_copy(update={"labels": {"user_id": "ann"}})
        host.meminfo.write_text(ENOUGH_FOR_NO_MORE)
        view = await machines.create(asked)
        assert view.is_clone
        assert view.vm_id == asked.vm_id
        assert view.labels == {"user_id": "ann"}
        assert (view.mac, view.ip_address) == (waiting.mac, waiting.ip_address)
        assert await status_of(machines, asked.vm_id, "one") == b"404"
        assert await status_of(machines, asked.vm_id, "another") == b"401"
        program = await machines.exec(asked.vm_id, ExecRequest(argv=["true"]))
        assert await program.wait() == 0
        inventory = await machines.inventory()
        assert inventory.folders == [asked.vm_id] == list(inventory.addresses)
        reserved = json.loads((host.root / "machines" / asked.vm_id / "machine.json").read_text())
        assert (reserved["vm_id"], reserved["state"]) == (asked.vm_id, "running")
        assert not list((host.root / "machines" / asked.vm_id).glob(".*"))
        await machines.destroy(asked.vm_id)
        assert host.is_empty


async def test_taken_clone_is_replaced(host: WarmHost) -> None:
    async with with_standby(host) as machines:
        [first] = standby_ids(machines)
        asked = browser_request()
        await machines.create(asked)
        await until_standby(machines)
        [second] = standby_ids(machines)
        assert first != second
        await machines.destroy(asked.vm_id)
        assert standby_ids(machines) == [second], "the other clone survives"
    assert host.is_empty


async def test_no_clone_is_created_during_a_login_without_processors_for_both(
    host: WarmHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.processors = 3
    async with with_standby(host) as machines:
        asked = browser_request()
        await machines.create(asked)
        looks = CallCounter(monkeypatch, WarmPool, "_poll")
        await looks.reached(3)
        assert not standby_ids(machines)
        await machines.destroy(asked.vm_id)
        await until_standby(machines)


async def test_more_logins_than_standby_clones(host: WarmHost) -> None:
    async with with_standby(host) as machines:
        asked = [browser_request(token=f"token {number}") for number in range(3)]
        views = await asyncio.gather(*(machines.create(it) for it in asked))
        assert all(view.is_clone for view in views)
        assert len({view.mac for view in views}) == 3
        for number, it in enumerate(asked):
            assert await status_of(machines, it.vm_id, f"token {number}") == b"404"
            await machines.destroy(it.vm_id)


async def test_number_of_standby_clones_follows_the_setting(host: WarmHost) -> None:
    host.waiting = 3
    async with with_standby(host, count=3) as machines:
        assert len(set(standby_ids(machines))) == 3
        view = await machines.clones.view()
        assert "3 of 3 clones wait for a login" in view.words
        for vm_id in standby_ids(machines):
            with pytest.raises(MachineBusy):
                await machines.exec(vm_id, ExecRequest(argv=["true"]))
    assert host.is_empty, "they end with the agent"


async def test_other_shapes_and_kinds_do_not_take_a_clone(host: WarmHost) -> None:
    async with with_standby(host) as machines:
        waiting = standby_ids(machines)
        assert not (await create_and_destroy(machines, _cli())).is_clone
        assert standby_ids(machines) == waiting
        assert not (await create_and_destroy(machines, browser_request(memory_mib=4096))).is_clone


async def test_clone_of_an_outdated_template_is_destroyed(host: WarmHost) -> None:
    async with with_standby(host) as machines:
        [old] = standby_ids(machines)
        larger = replace(SHAPE, memory_mib=4096)
        await machines.clones.request_template(larger)

        async def is_replaced() -> bool:
            found = standby_ids(machines)
            return bool(found) and old not in found

        await until(is_replaced)
        assert (await create_and_destroy(machines, browser_request(memory_mib=4096))).is_clone


async def test_standby_clones_are_evicted_when_memory_is_short(host: WarmHost) -> None:
    async with with_standby(host) as machines:
        host.meminfo.write_text(NEXT_TO_NOTHING)

        async def is_empty() -> bool:
            return host.is_empty

        await until(is_empty)
        host.meminfo.write_text(PLENTY)
        await until_standby(machines)


async def test_standby_clones_are_evicted_for_a_machine_that_needs_their_memory(
    host: WarmHost,
) -> None:
    host.memory_mib = 2048 + 512
    async with with_standby(host) as machines:
        asked = _cli()
        await machines.create(asked)
        assert not standby_ids(machines)
        with pytest.raises(NoCapacity):
            await machines.create(browser_request())
        await machines.destroy(asked.vm_id)


async def test_taken_clone_needs_no_additional_memory(host: WarmHost) -> None:
    host.memory_mib = 2048 + 512
    async with with_standby(host) as machines:
        [waiting] = machines.views()
        asked = browser_request()
        view = await machines.create(asked)
        assert view.mac == waiting.mac
        await machines.destroy(asked.vm_id)


async def test_clone_in_creation_is_evicted_too(host: WarmHost) -> None:
    host.memory_mib = 2048 + 512
    await build_template(host)
    host.waiting = 1
    host.simulation = Simulation(renew_s=60)
    async with host.running_agent() as machines:

        async def is_in_creation() -> bool:
            machines_dir = host.root / "machines"
            return any(
                any((machines_dir / it).glob("*/run/boot_id")) for it in standby_ids(machines)
            )

        await until(is_in_creation)
        asked = _cli()
        await machines.create(asked)
        assert not standby_ids(machines)
        await machines.destroy(asked.vm_id)


async def test_concurrent_starts_share_the_memory_of_an_evicted_clone(
    host: WarmHost,
) -> None:
    host.memory_mib = 2048
    async with with_standby(host) as machines:
        asked = [_cli(), _cli()]
        views = await asyncio.gather(*(machines.create(it) for it in asked))
        assert {view.state for view in views} == {MachineState.RUNNING}
        for it in asked:
            await machines.destroy(it.vm_id)


async def test_reserved_clone_is_not_evicted_for_another_machine(
    host: WarmHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.memory_mib = 2048 + 1024
    async with with_standby(host) as machines:
        [waiting] = machines.views()
        fault = StepFault(monkeypatch, guest_scripts.Script, "send")
        fault.hangs = True
        login, other = browser_request(), _cli()
        creating = asyncio.create_task(machines.create(login))
        await fault.reached.wait()
        assert (await machines.create(other)).state is MachineState.RUNNING
        with pytest.raises(NoCapacity):
            await machines.create(_cli())
        await machines.destroy(login.vm_id)
        with pytest.raises(MachineBusy):
            await creating
        assert waiting.vm_id not in (await machines.inventory()).folders
        await machines.destroy(other.vm_id)


@pytest.mark.parametrize("left_mib", [1500, 100])
async def test_login_needs_only_the_memory_that_its_clone_lacks(
    host: WarmHost, left_mib: int
) -> None:
    """Otherwise the clone is evicted, and its memory suffices."""
    left = {"beside one that waits": 8192, "without": 8192}
    host.left_mib = lambda: left["beside one that waits" if _waiting_folders(host) else "without"]
    host.held_mib = 1024
    async with with_standby(host) as machines:
        left["beside one that waits"] = left_mib
        [waiting] = standby_ids(machines)
        key, asked = _host_key(host, waiting), browser_request()
        await machines.create(asked)
        assert (_host_key(host, asked.vm_id) == key) == (left_mib == 1500)
        await machines.destroy(asked.vm_id)


async def test_hanging_standby_clone_leaves_time_to_clone(host: WarmHost) -> None:
    async with with_standby(host) as machines:
        [waiting] = standby_ids(machines)
        machines._registry.running[waiting].vmm.resume = _never  # type: ignore[method-assign]
        asked = browser_request().model_copy(update={"ready_timeout_s": 30})
        view = await machines.create(asked)
        assert view.is_clone
        assert host.templates, "the template is not to blame"
        await machines.destroy(asked.vm_id)


async def _never() -> None:
    await asyncio.Event().wait()


async def test_standby_clone_cannot_be_stopped_or_started(host: WarmHost) -> None:
    async with with_standby(host) as machines:
        [waiting] = standby_ids(machines)
        with pytest.raises(MachineBusy):
            await machines.stop(waiting)
        with pytest.raises(MachineBusy):
            await machines.start(waiting, 10)


async def test_request_during_a_build_is_not_lost(host: WarmHost) -> None:
    await build_template(host)
    host.waiting, host.quiet_s = 1, 3600
    host.simulation = Simulation(renew_s=0.5)
    async with host.running_agent() as machines:

        async def is_in_creation() -> bool:
            return bool(standby_ids(machines))

        await until(is_in_creation)
        await machines.clones.request_template(replace(SHAPE, memory_mib=4096))

        async def is_cloned() -> bool:
            return (await create_and_destroy(machines, browser_request(memory_mib=4096))).is_clone

        await until(is_cloned)


@pytest.mark.parametrize("how", ["its VMM ends", "it is destroyed"])
async def test_ended_standby_clone_is_replaced(host: WarmHost, how: str) -> None:
    async with with_standby(host) as machines:
        [old] = standby_ids(machines)
        if how == "it is destroyed":
            await machines.destroy(old)
        else:
            running = machines._registry.running[old]
            await running.vmm.kill()

        async def is_replaced() -> bool:
            found = standby_ids(machines)
            return bool(found) and old not in found

        await until(is_replaced)
        assert (await create_and_destroy(machines)).is_clone


async def test_unusable_standby_clone_is_skipped(host: WarmHost) -> None:
    async with with_standby(host) as machines:
        [waiting] = machines.views()
        running = machines._registry.running[waiting.vm_id]
        asked = browser_request()
        taking = asyncio.create_task(machines.create(asked))
        await running.vmm.kill()
        view = await taking
        assert view.is_clone
        assert await status_of(machines, asked.vm_id, "the clone's") == b"404"
        await machines.destroy(asked.vm_id)
