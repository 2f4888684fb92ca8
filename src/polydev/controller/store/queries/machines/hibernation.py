"""Rows of `vms`, as far as machines sleep: which are not used, and why each slept and woke.

`workflows/` asks. A machine is claimed for its sleep by one update that names what must hold, so
that it and the note of a use exclude each other; a turn is kept out by `chats.answers_in`, asked
under the lock under which turns are added.
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
    """CLI machines that run, and that nobody has used since then; the longest unused first."""
    query = (
        sa.select(vms.c.vm_id)
        .where(_RUNNING, vms.c.vm_type == MachineKind.CLI, since > _USED_AT)
        .order_by(_USED_AT, vms.c.vm_id)
    )
    return [VmId(row.vm_id) for row in await connection.execute(query)]


async def set_used(connection: AsyncConnection, vm_id: VmId, at: datetime) -> bool:
    """A machine is used now. Whether it runs; nothing is noted of one that does not."""
    query = sa.update(vms).where(vms.c.vm_id == vm_id, _RUNNING).values(used_at=at)
    return bool((await connection.execute(query)).rowcount)


async def begin_hibernation(
    connection: AsyncConnection,
    vm_id: VmId,
    why: str,
    at: datetime,
    unused_since: datetime | None = None,
) -> bool:
    """Claim a machine that runs for its sleep; it is `hibernating` from then on. `unused_since`:
    only if nobody has used it since then. Whether it was claimed."""
    unused = sa.true() if unused_since is None else unused_since > _USED_AT
    query = sa.select(vms.c.vm_id).where(vms.c.vm_id == vm_id, _RUNNING, unused).with_for_update()
    if (await connection.execute(query)).one_or_none() is None:
        return False
    noting = {"slept_at": at, "slept_why": why, "sleep_trouble": None}
    return await machines.set_state(connection, vm_id, MachineState.HIBERNATING, noting=noting)


async def set_hibernated(
    connection: AsyncConnection, vm_id: VmId, memory_on_disk_bytes: int
) -> None:
    """A machine's memory is on disk."""
    noting = {"memory_on_disk_bytes": memory_on_disk_bytes}
    before = [MachineState.HIBERNATING]
    await machines.set_state(
        connection, vm_id, MachineState.HIBERNATED, instead_of=before, noting=noting
    )


async def revert_to_running(
    connection: AsyncConnection, vm_id: VmId, trouble: str, at: datetime
) -> bool:
    """A machine that was to sleep runs on; it is asked again when it has been unused for as long
    once more. Whether it was to sleep."""
    noting = {"sleep_trouble": trouble, "used_at": at, "slept_at": None, "slept_why": None}
    before = [MachineState.HIBERNATING]
    return await machines.set_state(
        connection, vm_id, MachineState.RUNNING, instead_of=before, noting=noting
    )


async def revert_to_hibernated(connection: AsyncConnection, vm_id: VmId, trouble: str) -> None:
    """A machine that was to wake did not; its memory is still on disk."""
    noting = {"sleep_trouble": trouble}
    before = [MachineState.RESUMING]
    await machines.set_state(
        connection, vm_id, MachineState.HIBERNATED, instead_of=before, noting=noting
    )


async def set_resume_reason(connection: AsyncConnection, vm_id: VmId, why: str) -> None:
    """Why a machine is being woken, in the transaction that claims its room."""
    query = sa.update(vms).where(vms.c.vm_id == vm_id)
    await connection.execute(
        query.values(woke_why=why, woke_how=None, boot_reason=None, sleep_trouble=None)
    )


def resumed_values(at: datetime, how: WokeHow, boot_reason: str, took_s: float) -> dict[str, Any]:
    """What is noted beside the state of a machine that slept and runs again."""
    return {
        "woke_at": at,
        "woke_how": how,
        "boot_reason": boot_reason or None,
        "wake_took_s": took_s,
    }
