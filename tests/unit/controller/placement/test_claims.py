"""Concurrent claims never exceed the capacity, on both databases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from polydev.controller.placement import Placement, Quotas
from polydev.controller.placement.quotas import lock_user
from polydev.controller.store.engine.database import Database, open_database
from polydev.controller.store.queries.accounts import users
from polydev.controller.store.queries.machines import capacity, hosts, machines
from polydev.shared.domain import (
    HostId,
    HostState,
    Machine,
    MachineKind,
    MachineSize,
    MachineState,
    Resources,
    User,
    UserId,
    VmId,
    new_vm_id,
    now,
)
from polydev.shared.errors import HostUnreachable, NoCapacity, NoSuchUser, QuotaExceeded
from polydev.shared.host_protocol import Health

ANN = UserId("ann")
SIZE = MachineSize(1024, 1, 4096)
PLACEMENT = Placement(unseen_limit_s=20, dead_limit_s=45)
QUOTAS = Quotas(machines=3, memory_mib=8192, sessions=2, cli=SIZE, browser=SIZE)


def health(memory_mib: int = 4096) -> Health:
    return Health(
        version="1",
        driver="simulated",
        accelerator="none",
        memory_mib=memory_mib,
        vcpus=100,
        max_machines=100,
        disk_free_mib=100_000,
    )


@pytest.fixture
async def database(database_url: str, tmp_path: Path) -> AsyncIterator[Database]:
    """Ann, and the hosts `a` and `b` with room for four machines each."""
    database = open_database(database_url, tmp_path)
    await database.upgrade()
    async with database.write() as connection:
        await users.insert(connection, User(ANN, "ann@example.test", now()))
        for name in ("a", "b"):
            await hosts.register(connection, HostId(name), f"/run/{name}.sock")
            await hosts.update_health(connection, HostId(name), health(), now())
    yield database
    await database.close()


def machine(state: MachineState = MachineState.CREATING, host_id: str | None = None) -> Machine:
    return Machine(
        vm_id=new_vm_id(),
        user_id=ANN,
        vm_type=MachineKind.CLI,
        status=state,
        ip_address=None,
        session_id=None,
        host_id=None if host_id is None else HostId(host_id),
        size=SIZE,
        error_code=None,
        error=None,
        created_at=now(),
    )


async def _place(database: Database) -> HostId | None:
    try:
        async with database.write() as connection:
            return (await PLACEMENT.place(connection, machine())).host_id
    except NoCapacity:
        return None


async def test_concurrent_placements_fill_hosts_exactly(database: Database) -> None:
    placed = await asyncio.gather(*(_place(database) for _ in range(15)))
    assert sorted(str(it) for it in placed if it is not None) == ["a"] * 4 + ["b"] * 4
    async with database.read() as connection:
        assert await capacity.get_taken_by_host(connection) == {
            "a": Resources(4096, 4, 4),
            "b": Resources(4096, 4, 4),
        }


async def test_stopped_machine_takes_capacity_again_when_it_starts(database: Database) -> None:
    stopped = [machine(MachineState.STOPPED, "a") for _ in range(6)]
    async with database.write() as connection:
        for it in stopped:
            await machines.insert_if_absent(connection, it)

    async def start(it: Machine) -> None:
        async with database.write() as connection:
            await PLACEMENT.claim_start(connection, it)

    ends = await asyncio.gather(*(start(it) for it in stopped), return_exceptions=True)
    refused = [it for it in ends if it is not None]
    assert [type(it) for it in refused] == [NoCapacity] * 2


async def test_machine_is_not_started_on_a_draining_or_silent_host(
    database: Database,
) -> None:
    async with database.write() as connection:
        await hosts.set_state(connection, HostId("a"), HostState.DRAINING)
        with pytest.raises(NoCapacity, match="draining"):
            await PLACEMENT.claim_start(connection, machine(MachineState.STOPPED, "a"))
    never = Placement(unseen_limit_s=-1, dead_limit_s=45)
    async with database.write() as connection:
        with pytest.raises(HostUnreachable, match="does not answer"):
            await never.claim_start(connection, machine(MachineState.STOPPED, "b"))


async def test_machine_moves_only_from_a_dead_host(database: Database) -> None:
    async with database.write() as connection:
        placed = await PLACEMENT.place(connection, machine())
        assert await PLACEMENT.move_from_dead_host(connection, placed.vm_id) is None
        await hosts.set_state(connection, HostId("b"), HostState.ACTIVE)
        dead = Placement(unseen_limit_s=20, dead_limit_s=-1)
        moved = await dead.move_from_dead_host(connection, placed.vm_id)
        assert moved is not None
        assert (placed.host_id, moved.host_id) == ("a", "b")
        assert (await machines.get(connection, placed.vm_id, ANN)).attempt == 1


async def _make_within_quota(database: Database) -> None:
    async with database.write() as connection:
        await lock_user(connection, ANN)
        await QUOTAS.require_machine(connection, ANN, SIZE)
        await machines.insert_if_absent(connection, machine())


async def test_concurrent_requests_do_not_exceed_a_quota(database: Database) -> None:
    requests = (_make_within_quota(database) for _ in range(10))
    ends = await asyncio.gather(*requests, return_exceptions=True)
    refused = [it for it in ends if isinstance(it, QuotaExceeded)]
    assert len(refused) == 10 - QUOTAS.machines
    assert all("POLYDEV_QUOTA_MACHINES" in it.message and it.hint for it in refused)
    async with database.read(ANN) as connection:
        used = await QUOTAS.usage(connection, ANN)
    assert (used.machines, used.memory_mib, used.sessions) == (3, 3072, 0)


async def test_deleted_or_unknown_user_cannot_be_locked(database: Database) -> None:
    async with database.write() as connection:
        with pytest.raises(NoSuchUser):
            await lock_user(connection, UserId("nobody"))


async def test_host_with_machines_is_not_deleted(database: Database) -> None:
    async with database.write() as connection:
        placed = await PLACEMENT.place(connection, machine())
        with pytest.raises(Exception, match="still has 1 machines"):
            await hosts.delete(connection, HostId("a"))
        await machines.set_state(connection, VmId(placed.vm_id), MachineState.DESTROYED)
        await hosts.delete(connection, HostId("a"))
        assert [it.host_id for it in await hosts.list_all(connection)] == ["b"]
