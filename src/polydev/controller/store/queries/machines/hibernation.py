"""Queries of `vms` about use, hibernation and resume of machines.

A hibernation claims its machine in one conditional update, so that it and `set_used` exclude each
other. `chats.has_active_turn`, under the lock that guards new turns, excludes chat turns.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.store.queries.machines import machines
from polydev.controller.store.tables import vms
from polydev.shared.domain import MachineKind, MachineState, VmId, WokeHow

_RUNNING = vms.c.status == MachineState.RUNNING
_USED_AT = sa.func.coalesce(vms.c.used_at, vms.c.created_at)


async def list_unused_since(connection: AsyncConnection, since: datetime) -> list[VmId]:
    """List running CLI machines not used since a time, longest unused first."""
    query = (
        sa.select(vms.c.vm_id)
        .where(_RUNNING, vms.c.vm_type == MachineKind.CLI, since > _USED_AT)
        .order_by(_USED_AT, vms.c.vm_id)
    )
    return [VmId(row.vm_id) for row in await connection.execute(query)]


async def set_used(connection: AsyncConnection, vm_id: VmId, at: datetime) -> bool:
    """Record the use of a running machine; return whether it runs."""
    query = sa.update(vms).where(vms.c.vm_id == vm_id, _RUNNING).values(used_at=at)
    return bool((await connection.execute(query)).rowcount)


async def begin_hibernation(
    connection: AsyncConnection,
    vm_id: VmId,
    why: str,
    at: datetime,
    unused_since: datetime | None = None,
) -> bool:
    """Claim a running machine and set it to `hibernating`.

    Return whether it was claimed.

    With `unused_since`, claim it only if it was not used since then.
    """
    unused = sa.true() if unused_since is None else unused_since > _USED_AT
    query = sa.select(vms.c.vm_id).where(vms.c.vm_id == vm_id, _RUNNING, unused).with_for_update()
    if (await connection.execute(query)).one_or_none() is None:
        return False
    extra_columns = {"slept_at": at, "slept_why": why, "sleep_trouble": None}
    return await machines.set_state(
        connection, vm_id, MachineState.HIBERNATING, extra_columns=extra_columns
    )


async def set_hibernated(
    connection: AsyncConnection, vm_id: VmId, memory_on_disk_bytes: int
) -> None:
    """Set a hibernating machine to `hibernated`: its memory is on disk."""
    extra_columns = {"memory_on_disk_bytes": memory_on_disk_bytes}
    before = [MachineState.HIBERNATING]
    await machines.set_state(
        connection, vm_id, MachineState.HIBERNATED, instead_of=before, extra_columns=extra_columns
    )


async def revert_to_running(
    connection: AsyncConnection, vm_id: VmId, trouble: str, at: datetime
) -> bool:
    """Return a hibernating machine to `running`; return whether it was hibernating.

    It counts as used now, so the next attempt waits for the whole idle time again.
    """
    extra_columns = {"sleep_trouble": trouble, "used_at": at, "slept_at": None, "slept_why": None}
    before = [MachineState.HIBERNATING]
    return await machines.set_state(
        connection, vm_id, MachineState.RUNNING, instead_of=before, extra_columns=extra_columns
    )


async def revert_to_hibernated(connection: AsyncConnection, vm_id: VmId, trouble: str) -> None:
    """Return a resuming machine to `hibernated`: its memory is still on disk."""
    extra_columns = {"sleep_trouble": trouble}
    before = [MachineState.RESUMING]
    await machines.set_state(
        connection, vm_id, MachineState.HIBERNATED, instead_of=before, extra_columns=extra_columns
    )


async def set_resume_reason(connection: AsyncConnection, vm_id: VmId, why: str) -> None:
    """Record why a machine resumes, in the transaction that claims its capacity."""
    query = sa.update(vms).where(vms.c.vm_id == vm_id)
    await connection.execute(
        query.values(woke_why=why, woke_how=None, boot_reason=None, sleep_trouble=None)
    )


def resumed_values(at: datetime, how: WokeHow, boot_reason: str, took_s: float) -> dict[str, Any]:
    """Return the columns to set when a machine has resumed."""
    return {
        "woke_at": at,
        "woke_how": how,
        "boot_reason": boot_reason or None,
        "wake_took_s": took_s,
    }
