"""Queries of `vms`: machines as the controller knows them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.store.engine import keyset
from polydev.controller.store.engine.event_outbox import emit
from polydev.controller.store.engine.keyset import PageSpec
from polydev.controller.store.tables import GONE_STATES, vms
from polydev.shared.domain import (
    Hibernation,
    HostId,
    Machine,
    MachineKind,
    MachineSize,
    MachineState,
    SessionId,
    UserId,
    VmId,
    WokeHow,
    now,
)
from polydev.shared.errors import NoSuchMachine
from polydev.shared.hints import Hint

_ALIVE = vms.c.status.not_in(GONE_STATES)
"""Condition: the machine is not destroyed."""


async def insert_if_absent(connection: AsyncConnection, machine: Machine) -> None:
    """Insert a machine unless it exists."""
    if await find(connection, machine.vm_id) is not None:
        return
    await connection.execute(
        sa.insert(vms).values(
            vm_id=machine.vm_id,
            user_id=machine.user_id,
            ip_address=machine.ip_address,
            status=machine.status,
            vm_type=machine.vm_type,
            session_id=machine.session_id,
            host_id=machine.host_id,
            **machine.size.fields(),
            created_at=machine.created_at,
        )
    )
    await _emit(connection, machine.user_id, machine.vm_id, machine.vm_type, machine.status)


async def find(connection: AsyncConnection, vm_id: VmId) -> Machine | None:
    """Return a machine of any user, in any state."""
    row = (await connection.execute(sa.select(vms).where(vms.c.vm_id == vm_id))).one_or_none()
    return None if row is None else _machine(row)


async def get(connection: AsyncConnection, vm_id: VmId, user_id: UserId | None) -> Machine:
    """Return a machine that is not destroyed, of a user (None: any).

    Raises NoSuchMachine.
    """
    machine = await find(connection, vm_id)
    is_own = machine is not None and user_id in (None, machine.user_id)
    if machine is None or not is_own or machine.status in GONE_STATES:
        raise NoSuchMachine(f"You have no machine {vm_id}", hint=Hint.LIST_MACHINES.text())
    return machine


async def list_for_user(
    connection: AsyncConnection, user_id: UserId, span: PageSpec | None = None
) -> list[Machine]:
    """List a user's machines that are not destroyed, oldest first."""
    return await _list(connection, vms.c.user_id == user_id, _ALIVE, span=span)


async def list_ever_for_user(connection: AsyncConnection, user_id: UserId) -> list[Machine]:
    """List a user's machines, including destroyed ones, oldest first."""
    return await _list(connection, vms.c.user_id == user_id)


async def list_alive(connection: AsyncConnection, span: PageSpec | None = None) -> list[Machine]:
    """List machines of all users that are not destroyed, oldest first."""
    return await _list(connection, _ALIVE, span=span)


async def find_cli_machine(
    connection: AsyncConnection, user_id: UserId, *states: MachineState
) -> Machine | None:
    """Return a user's oldest CLI machine in one of the states."""
    found = await _list(
        connection,
        vms.c.user_id == user_id,
        vms.c.vm_type == MachineKind.CLI,
        vms.c.status.in_(states),
    )
    return found[0] if found else None


async def set_state(
    connection: AsyncConnection,
    vm_id: VmId,
    state: MachineState,
    ip_address: str | None = None,
    *,
    instead_of: Collection[MachineState] | None = None,
    extra_columns: Mapping[str, Any] | None = None,
) -> bool:
    """Set a machine's state, and its address if given.

    Return whether it changed.

    `instead_of` limits the change to these states; `extra_columns` are set as well. Destroyed
    machines never change.
    """
    values: dict[str, Any] = {"status": state, **(extra_columns or {})}
    if not state.keeps_saved_memory:
        values["memory_on_disk_bytes"] = None
    if ip_address is not None:
        values["ip_address"] = ip_address
    if state in GONE_STATES:
        values |= {"ip_address": None, "destroyed_at": now()}
    wanted = [vms.c.vm_id == vm_id, _ALIVE]
    if instead_of is not None:
        wanted.append(vms.c.status.in_(instead_of))
    return await _update(connection, sa.update(vms).where(*wanted).values(**values))


async def move_to_host(connection: AsyncConnection, vm_id: VmId, host_id: HostId) -> None:
    """Move a machine that must be created again to another host."""
    await increment_attempt(connection, vm_id)
    values = {"host_id": host_id, "status": MachineState.CREATING, "ip_address": None}
    await connection.execute(sa.update(vms).where(vms.c.vm_id == vm_id, _ALIVE).values(**values))


async def prune(connection: AsyncConnection, before: datetime) -> int:
    """Delete machines that were destroyed before a time; return their number."""
    result = await connection.execute(
        sa.delete(vms).where(vms.c.status.in_(GONE_STATES), vms.c.destroyed_at < before)
    )
    return int(result.rowcount)


async def increment_attempt(connection: AsyncConnection, vm_id: VmId) -> int:
    """Increment and return the machine's attempt number, which names the next workflow.

    Every stop, start, hibernation, resume or new creation has its own number.
    """
    query = (
        sa.update(vms)
        .where(vms.c.vm_id == vm_id)
        .values(attempt=vms.c.attempt + 1)
        .returning(vms.c.attempt)
    )
    return int((await connection.execute(query)).scalar_one())


async def set_failed(connection: AsyncConnection, vm_id: VmId, problem: tuple[str, str]) -> None:
    """Mark a machine as failed, with error code and message."""
    code, message = problem
    query = sa.update(vms).where(vms.c.vm_id == vm_id, _ALIVE)
    await _update(
        connection,
        query.values(
            status=MachineState.FAILED,
            error_code=code,
            error=message,
            ip_address=None,
            memory_on_disk_bytes=None,
        ),
    )


async def _update(connection: AsyncConnection, change: sa.Update) -> bool:
    """Update a machine's row and emit an event.

    Return whether there was one.
    """
    query_ = change.returning(vms.c.user_id, vms.c.vm_id, vms.c.vm_type, vms.c.status)
    row = (await connection.execute(query_)).one_or_none()
    if row is not None:
        await _emit(connection, *row)
    return row is not None


async def _emit(
    connection: AsyncConnection, user_id: UserId, vm_id: VmId, kind: str, status: str
) -> None:
    await emit(connection, user_id, "machine", vm_id, kind=kind, status=status)


async def _list(
    connection: AsyncConnection, *conditions: Any, span: PageSpec | None = None
) -> list[Machine]:
    query = keyset.page(sa.select(vms).where(*conditions), (vms.c.created_at, vms.c.vm_id), span)
    return [_machine(row) for row in await connection.execute(query)]


def _machine(row: sa.Row[Any]) -> Machine:
    return Machine(
        vm_id=VmId(row.vm_id),
        user_id=UserId(row.user_id),
        vm_type=MachineKind(row.vm_type),
        status=MachineState(row.status),
        ip_address=row.ip_address,
        session_id=None if row.session_id is None else SessionId(row.session_id),
        host_id=None if row.host_id is None else HostId(row.host_id),
        size=MachineSize(row.memory_mib, row.vcpus, row.disk_mib),
        error_code=row.error_code,
        error=row.error,
        created_at=row.created_at,
        attempt=row.attempt,
        used_at=row.used_at,
        hibernation=Hibernation(
            hibernated_at=row.slept_at,
            hibernate_reason=row.slept_why or "",
            problem=row.sleep_trouble or "",
            resumed_at=row.woke_at,
            resume_reason=row.woke_why or "",
            resumed_how=None if row.woke_how is None else WokeHow(row.woke_how),
            boot_reason=row.boot_reason or "",
            resume_took_s=row.wake_took_s,
            memory_on_disk_bytes=row.memory_on_disk_bytes,
        ),
    )
