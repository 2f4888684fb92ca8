"""Machines that are nobody's: those that the host makes for itself, to make templates of them or
to have them wait for somebody.

`making.py` and `waiting.py` have them made. To everybody else such a machine is one that is still
being made: nobody is let into it, a sweep leaves it alone, and the next agent removes it. Its label
says what it is.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from polydev.hostagent.machines.context import Site
from polydev.hostagent.machines.lifecycle import PreparedMachine, erase, prepare
from polydev.hostagent.machines.record import MachineRecord
from polydev.hostagent.machines.registry import Roster
from polydev.hostagent.server.error_mapping import problem_of
from polydev.hostagent.system.cancellation import in_thread, to_its_end
from polydev.hostagent.warm_pool.templates import Shape
from polydev.shared.domain import MachineKind, MachineState, new_vm_id
from polydev.shared.host_protocol import PURPOSE

log = logging.getLogger("polydev.hostagent")

_TOKEN_BYTES = 32


@asynccontextmanager
async def passing(
    site: Site, roster: Roster, shape: Shape, purpose: str
) -> AsyncIterator[PreparedMachine]:
    """One that has everything but a VMM; gone when this ends. Raises: as `made`."""
    prepared = await made(site, roster, shape, purpose, fresh=True)
    try:
        yield prepared
    finally:
        await unmade(site, roster, prepared.record.vm_id)


async def made(
    site: Site, roster: Roster, shape: Shape, purpose: str, *, fresh: bool
) -> PreparedMachine:
    """One that has everything but a VMM, and a disk only if `fresh`; with a token that nobody is
    told. Raises: what `prepare` raises; nothing is left then.
    """
    record = MachineRecord(
        vm_id=new_vm_id(),
        machine_kind=MachineKind.BROWSER,
        **shape.model_dump(),
        labels={PURPOSE: purpose},
        state=MachineState.CREATING,
        created_at=datetime.now(UTC),
        uid=roster.free_uid(),
    )
    roster.records[record.vm_id] = record
    try:
        return await to_its_end(_prepared(site, roster, record, fresh=fresh))
    except BaseException:
        await unmade(site, roster, record.vm_id)
        raise


async def unmade(site: Site, roster: Roster, vm_id: str) -> None:
    """End and remove it. What cannot be removed now is swept later."""
    await to_its_end(_unmade(site, roster, vm_id))


async def _unmade(site: Site, roster: Roster, vm_id: str) -> None:
    async with roster.alone(vm_id):
        try:
            await erase(site, vm_id, roster.running.get(vm_id))
        except Exception as error:
            log.error("%s is not wholly removed: %s", vm_id, problem_of(error).message)
        roster.forget(vm_id)


async def _prepared(
    site: Site, roster: Roster, record: MachineRecord, *, fresh: bool
) -> PreparedMachine:
    await roster.keep(record)
    token = secrets.token_urlsafe(_TOKEN_BYTES)
    await in_thread(site.folder(record.vm_id).write_token, token)
    prepared = await prepare(site, record, fresh=fresh)
    roster.records[record.vm_id] = prepared.record
    return prepared
