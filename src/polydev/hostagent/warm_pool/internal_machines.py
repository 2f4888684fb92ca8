"""Internal machines of the host: templates in the making, and standby clones.

To everything else such a machine is still being created: no client can use it, a sweep ignores it,
and the next agent removes it. Its label states its purpose.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from polydev.hostagent.machines.context import HostContext
from polydev.hostagent.machines.machine import PreparedMachine, erase, prepare
from polydev.hostagent.machines.record import MachineRecord
from polydev.hostagent.machines.registry import MachineRegistry
from polydev.hostagent.system.cancellation import run_in_thread_shielded, run_shielded
from polydev.hostagent.system.error_mapping import problem_of
from polydev.shared.domain import MachineKind, MachineSize, MachineState, new_vm_id
from polydev.shared.host_protocol import PURPOSE

log = logging.getLogger("polydev.hostagent")

_TOKEN_BYTES = 32


@asynccontextmanager
async def temporary(
    host: HostContext, registry: MachineRegistry, shape: MachineSize, purpose: str
) -> AsyncIterator[PreparedMachine]:
    """Create one that is destroyed at the end. Raises as `create`."""
    prepared = await create(host, registry, shape, purpose, fresh=True)
    try:
        yield prepared
    finally:
        await destroy(host, registry, prepared.record.vm_id)


async def create(
    host: HostContext, registry: MachineRegistry, shape: MachineSize, purpose: str, *, fresh: bool
) -> PreparedMachine:
    """Create one without a VMM, and with a disk only if `fresh`.

    Its token is secret. Raises what `prepare` raises; nothing is left then.
    """
    record = MachineRecord(
        vm_id=new_vm_id(),
        machine_kind=MachineKind.BROWSER,
        **shape.fields(),
        labels={PURPOSE: purpose},
        state=MachineState.CREATING,
        created_at=datetime.now(UTC),
        uid=registry.free_uid(),
    )
    registry.records[record.vm_id] = record
    try:
        return await run_shielded(_prepare(host, registry, record, fresh=fresh))
    except BaseException:
        await destroy(host, registry, record.vm_id)
        raise


async def destroy(host: HostContext, registry: MachineRegistry, vm_id: str) -> None:
    """End and remove it, shielded from cancellation. A later sweep removes leftovers."""
    await run_shielded(_destroy(host, registry, vm_id))


async def _destroy(host: HostContext, registry: MachineRegistry, vm_id: str) -> None:
    async with registry.lock_machine(vm_id):
        try:
            await erase(host, vm_id, registry.running.get(vm_id))
        except Exception as error:
            log.error("cannot remove %s completely: %s", vm_id, problem_of(error).message)
        registry.remove(vm_id)


async def _prepare(
    host: HostContext, registry: MachineRegistry, record: MachineRecord, *, fresh: bool
) -> PreparedMachine:
    await registry.save(record)
    token = secrets.token_urlsafe(_TOKEN_BYTES)
    await run_in_thread_shielded(host.folder(record.vm_id).write_token, token)
    prepared = await prepare(host, record, fresh=fresh)
    registry.records[record.vm_id] = prepared.record
    return prepared
