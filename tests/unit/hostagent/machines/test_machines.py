"""The machine service: creation, undo, adoption, sweeping."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from machine_parts import STEPS, Injected, NoGuestChannel, World, failing_vmm

from polydev.hostagent.machines.service import MachineService
from polydev.hostagent.system import logs
from polydev.shared.domain import MachineKind, MachineState, new_vm_id
from polydev.shared.errors import (
    ChannelLost,
    DiskFull,
    Failed,
    MachineBusy,
    MachineNotReady,
    NetworkFailed,
    NoCapacity,
    NoSuchMachine,
    VmmFailed,
)
from polydev.shared.host_protocol import CreateMachine, ExecRequest, HostMachineView


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    yield world
    for pid in world.driver.find_orphans([]):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
async def machines(world: World) -> AsyncIterator[MachineService]:
    machines = MachineService(world.host())
    await machines.recover()
    yield machines
    await machines.close()


async def restart_agent(machines: MachineService, world: World) -> MachineService:
    """Start an agent after another one was killed."""
    await machines.close()
    again = MachineService(world.host())
    await again.recover()
    return again


def create_request(vm_id: str | None = None, **changes: object) -> CreateMachine:
    shape = {"machine_kind": MachineKind.CLI, "memory_mib": 512, "vcpus": 1, "disk_mib": 64}
    return CreateMachine.model_validate({"vm_id": vm_id or new_vm_id(), **shape, **changes})


async def wait_for_state(
    machines: MachineService, vm_id: str, state: MachineState
) -> HostMachineView:
    async with asyncio.timeout(10):
        while machines.view(vm_id).state is not state:
            await asyncio.sleep(0.01)
    return machines.view(vm_id)


async def test_machine_is_created_listed_and_destroyed(
    machines: MachineService, world: World
) -> None:
    view = await machines.create(create_request(labels={"user_id": "ada"}))
    assert view.state is MachineState.RUNNING
    assert (view.ip_address, view.labels) == ("192.168.100.5", {"user_id": "ada"})
    assert machines.views() == [view]
    seen = await machines.inventory()
    assert seen.machines == seen.folders == [view.vm_id]
    assert seen.processes == {view.vm_id: view.pid}
    assert seen.addresses == {view.vm_id: "192.168.100.5"}
    await machines.destroy(view.vm_id)
    assert world.is_clean()
    with pytest.raises(NoSuchMachine):
        machines.view(view.vm_id)


async def test_destroying_an_unknown_machine_succeeds(
    machines: MachineService, world: World
) -> None:
    await machines.destroy(new_vm_id())
    assert world.is_clean()


async def test_repeated_creation_returns_the_same_machine(machines: MachineService) -> None:
    create = create_request()
    first, second = await asyncio.gather(machines.create(create), machines.create(create))
    assert first == second
    with pytest.raises(MachineBusy, match="another kind or size"):
        await machines.create(create_request(create.vm_id, memory_mib=1024))


async def test_machines_are_created_in_parallel(machines: MachineService) -> None:
    views = await asyncio.gather(*(machines.create(create_request()) for _ in range(12)))
    assert len({view.ip_address for view in views}) == 12
    uids = {world_record.uid for world_record in machines._registry.records.values()}
    assert len(uids) == 12


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    ("error", "seen_as"),
    [
        (failing_vmm(), VmmFailed),
        (OSError(28, "No space left on device", "/x"), DiskFull),
        (Injected("secret detail"), Failed),
    ],
)
async def test_failure_at_any_step_leaves_nothing(
    machines: MachineService, world: World, step: str, error: Exception, seen_as: type[Failed]
) -> None:
    world.faults.fail_at, world.faults.error = step, error
    with pytest.raises(seen_as) as raised:
        await machines.create(create_request())
    assert "secret detail" not in str(raised.value)
    assert machines.views() == []
    assert world.is_clean()


@pytest.mark.parametrize("step", STEPS)
async def test_destroy_cancels_a_creation_at_any_step(
    machines: MachineService, world: World, step: str
) -> None:
    world.faults.hang_at = step
    create = create_request()
    creating = asyncio.create_task(machines.create(create))
    await world.faults.hanging.wait()
    await machines.destroy(create.vm_id)
    with pytest.raises(MachineBusy, match="destroyed"):
        await creating
    assert world.is_clean()


@pytest.mark.parametrize("step", STEPS)
async def test_cancelled_creation_is_undone(
    machines: MachineService, world: World, step: str
) -> None:
    world.faults.hang_at = step
    creating = asyncio.create_task(machines.create(create_request()))
    await world.faults.hanging.wait()
    creating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creating
    assert world.is_clean()


async def test_machine_that_is_never_ready_leaves_only_its_logs(
    machines: MachineService, world: World
) -> None:
    world.faults.hang_at = "ready"
    create = create_request(ready_timeout_s=0.2)
    with pytest.raises(MachineNotReady) as raised:
        await machines.create(create)
    console = machines.console_log(create.vm_id)
    assert create.vm_id in raised.value.message
    assert "0.2 s" in raised.value.message
    assert str(console) in raised.value.message
    assert world.is_clean()
    assert logs.tail(console, 23) == "boot of a machine\n"


async def test_vmm_that_ends_before_its_channel_answers_fails_the_creation(
    machines: MachineService, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never_answers(channel: NoGuestChannel, timeout_s: float | None = None) -> None:
        [pid] = world.driver.find_orphans([])
        os.kill(pid, signal.SIGKILL)
        await asyncio.Event().wait()

    monkeypatch.setattr(NoGuestChannel, "connect", never_answers)
    with pytest.raises(VmmFailed, match="ended before its channel answered"):
        await machines.create(create_request(ready_timeout_s=600))
    assert world.is_clean()


async def test_destroy_cancels_a_creation_that_waits_for_capacity(
    machines: MachineService, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = asyncio.Event()

    async def evict_standby() -> bool:
        waits.set()
        await asyncio.Event().wait()
        return True

    def admit(machine: object) -> None:
        raise NoCapacity("no room")

    monkeypatch.setattr(machines.clones, "evict_standby", evict_standby)
    monkeypatch.setattr(machines.clones, "admit", admit)
    create = create_request()
    creating = asyncio.create_task(machines.create(create))
    await waits.wait()
    async with asyncio.timeout(30):
        await machines.destroy(create.vm_id)
    with pytest.raises(MachineBusy, match="destroyed"):
        await creating
    assert world.is_clean()


async def test_log_archive_is_bounded(world: World) -> None:
    archive = world.host().log_archive
    console = world.root / "console.log"
    console.write_bytes(b"x" * 1_000_000)
    for number in range(60):
        archive.add(f"vm-{number}", console, world.root / "none")
    folders = list((world.root / "logs" / "machines").iterdir())
    assert len(folders) == 50
    assert all((path / "console.log").stat().st_size <= 256 * 1024 for path in folders)


async def test_console_symlink_is_not_followed(world: World) -> None:
    console = world.root / "console.log"
    console.symlink_to("/etc/passwd")
    assert logs.tail(console, 100) == ""
    world.host().log_archive.add("vm-x", console, console)
    assert (world.root / "logs" / "machines" / "vm-x" / "console.log").read_bytes() == b""


async def test_stopped_machine_keeps_its_address_and_starts_again(
    machines: MachineService, world: World
) -> None:
    view = await machines.create(create_request())
    stopped = await machines.stop(view.vm_id)
    assert (stopped.state, stopped.pid, stopped.ip_address) == (
        MachineState.STOPPED,
        None,
        view.ip_address,
    )
    assert await machines.stop(view.vm_id) == stopped
    with pytest.raises(MachineBusy):
        await machines.exec(view.vm_id, ExecRequest(argv=["true"]))
    started = await machines.start(view.vm_id, 10)
    assert (started.state, started.ip_address) == (MachineState.RUNNING, view.ip_address)
    assert await machines.start(view.vm_id, 10) == started
    await machines.stop(view.vm_id)
    again = await machines.create(create_request(view.vm_id))
    assert (again.state, again.ip_address) == (MachineState.RUNNING, view.ip_address)


async def test_failed_start_leaves_the_machine_failed_and_startable(
    machines: MachineService, world: World
) -> None:
    view = await machines.create(create_request())
    await machines.stop(view.vm_id)
    world.faults.fail_at, world.faults.error = "ready", failing_vmm()
    with pytest.raises(VmmFailed):
        await machines.start(view.vm_id, 10)
    failed = machines.view(view.vm_id)
    assert failed.state is MachineState.FAILED
    assert failed.error is not None
    assert failed.error.code == "vmm-failed"
    assert not world.driver.find_orphans([])
    world.faults.fail_at = None
    assert (await machines.start(view.vm_id, 10)).error is None


async def test_killed_vmm_is_recorded(machines: MachineService, world: World) -> None:
    view = await machines.create(create_request())
    assert view.pid is not None
    os.kill(view.pid, signal.SIGKILL)
    failed = await wait_for_state(machines, view.vm_id, MachineState.FAILED)
    assert failed.error is not None
    assert "signal 9" in failed.error.message
    assert failed.ip_address == view.ip_address
    assert (await machines.start(view.vm_id, 10)).state is MachineState.RUNNING
    await machines.destroy(view.vm_id)
    assert world.is_clean()


async def test_running_machines_are_adopted(machines: MachineService, world: World) -> None:
    view = await machines.create(create_request())
    again = await restart_agent(machines, world)
    assert again.view(view.vm_id) == view
    assert view.pid is not None
    os.kill(view.pid, signal.SIGKILL)
    ended = await wait_for_state(again, view.vm_id, MachineState.FAILED)
    assert ended.pid is None
    await again.destroy(view.vm_id)
    await again.close()
    assert world.is_clean()


async def test_paused_running_machine_is_resumed(machines: MachineService, world: World) -> None:
    view = await machines.create(create_request())
    assert view.pid is not None
    os.kill(view.pid, signal.SIGSTOP)
    stat = Path(f"/proc/{view.pid}/stat")
    async with asyncio.timeout(10):
        while stat.read_text().split()[2] != "T":
            await asyncio.sleep(0.01)
    again = await restart_agent(machines, world)
    assert again.view(view.vm_id).state is MachineState.RUNNING
    assert stat.read_text().split()[2] != "T"
    await again.destroy(view.vm_id)
    await again.close()


async def test_machine_that_ended_without_an_agent_is_stopped_with_a_reason(
    machines: MachineService, world: World
) -> None:
    view = await machines.create(create_request())
    await machines.close()
    assert view.pid is not None
    os.kill(view.pid, signal.SIGKILL)
    os.waitpid(view.pid, 0)
    again = MachineService(world.host())
    await again.recover()
    stopped = again.view(view.vm_id)
    assert stopped.state is MachineState.STOPPED
    assert stopped.error is not None
    assert world.network.attachments.keys() == {view.vm_id}


@pytest.mark.parametrize("state", [MachineState.CREATING, MachineState.DESTROYING])
async def test_half_created_or_half_destroyed_machine_is_removed(
    machines: MachineService, world: World, state: MachineState
) -> None:
    whole = await machines.create(create_request())
    half = await machines.create(create_request())
    await machines._registry.save(machines._registry.record(half.vm_id).updated(state=state))
    again = await restart_agent(machines, world)
    assert [view.vm_id for view in again.views()] == [whole.vm_id]
    assert world.network.attachments.keys() == {whole.vm_id}
    assert world.driver.find_orphans([]) == [whole.pid]
    await again.close()


async def test_orphaned_folders_processes_and_addresses_are_swept(
    machines: MachineService, world: World
) -> None:
    whole = await machines.create(create_request())
    torn = await machines.create(create_request())
    site = world.host()
    site.folder(torn.vm_id).record.write_text('{"vm_id": ')
    site.folder(new_vm_id()).path.mkdir()
    again = await restart_agent(machines, world)
    assert [view.vm_id for view in again.views()] == [whole.vm_id]
    assert world.driver.find_orphans([]) == [whole.pid]
    assert world.network.attachments.keys() == {whole.vm_id}
    left = {path.name for path in site.machines_dir.iterdir()}
    assert left == {whole.vm_id, torn.vm_id}  # an unreadable record may belong to a user's files
    with pytest.raises(MachineBusy, match="unreadable record"):
        await again.create(create_request(torn.vm_id))
    await again.destroy(torn.vm_id)
    assert [path.name for path in site.machines_dir.iterdir()] == [whole.vm_id]
    await again.close()


async def test_interrupted_start_is_undone(machines: MachineService, world: World) -> None:
    view = await machines.create(create_request())
    await machines._registry.save(
        machines._registry.record(view.vm_id).updated(state=MachineState.STOPPED)
    )
    again = await restart_agent(machines, world)
    assert again.view(view.vm_id).state is MachineState.STOPPED
    assert not world.driver.find_orphans([])


async def test_destroy_removes_the_disk_even_if_the_network_fails(
    machines: MachineService, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = await machines.create(create_request())

    async def fails(vm_id: str) -> None:
        raise NetworkFailed("no network")

    with monkeypatch.context() as patched:
        patched.setattr(world.network, "detach", fails)
        with pytest.raises(NetworkFailed):
            await machines.destroy(view.vm_id)
    assert machines.view(view.vm_id).state is MachineState.DESTROYING
    await machines.destroy(view.vm_id)
    assert world.is_clean()


async def test_token_is_stored_in_a_private_file(machines: MachineService, world: World) -> None:
    view = await machines.create(create_request(machine_kind=MachineKind.BROWSER, token="made-up"))
    folder = world.host().folder(view.vm_id)
    assert folder.read_token() == "made-up"
    assert folder.token.stat().st_mode & 0o777 == 0o600
    assert "made-up" not in folder.record.read_text()


async def test_machine_without_a_guest_does_not_answer(machines: MachineService) -> None:
    view = await machines.create(create_request())
    with pytest.raises(ChannelLost):
        await machines.open_tcp(view.vm_id, 80)
