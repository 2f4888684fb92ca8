"""Machines that are nobody's: those that the host makes for itself, to make templates and spares.

`making.py` and `spares.py` make them. To everybody else such a machine is one that is still being
made: nobody is let into it, a sweep leaves it alone, and the next agent removes it. Its label says
what it is.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from polydev.domain import MachineKind, MachineState, new_vm_id
from polydev.hostd.machine import erase
from polydev.hostd.problems import problem_of
from polydev.hostd.record import MachineRecord
from polydev.hostd.roster import Roster
from polydev.hostd.site import Site
from polydev.hostd.uncut import to_its_end
from polydev.hostd.warm.templates import Shape

log = logging.getLogger("polydev.hostd")

LABEL = "purpose"
_TOKEN_BYTES = 32


def is_nobodys(record: MachineRecord) -> bool:
    """Whether the host made it for itself."""
    return LABEL in record.labels


async def made(site: Site, roster: Roster, shape: Shape, purpose: str) -> MachineRecord:
    """A browser machine's record, with a token that nobody is told. Raises: OSError."""
    record = MachineRecord(
        vm_id=new_vm_id(),
        machine_kind=MachineKind.BROWSER,
        **shape.model_dump(),
        labels={LABEL: purpose},
        state=MachineState.CREATING,
        created_at=datetime.now(UTC),
        uid=roster.free_uid(),
    )
    await roster.keep(record)
    token = secrets.token_urlsafe(_TOKEN_BYTES)
    await asyncio.to_thread(site.folder(record.vm_id).write_token, token)
    return record


async def unmade(site: Site, roster: Roster, vm_id: str) -> None:
    """End it and remove all that is its; what cannot be removed now is swept later."""
    try:
        await to_its_end(erase(site, vm_id, roster.running.get(vm_id)))
    except Exception as error:
        log.error("%s is not wholly removed: %s", vm_id, problem_of(error).message)
    roster.forget(vm_id)


@asynccontextmanager
async def passing(
    site: Site, roster: Roster, shape: Shape, purpose: str
) -> AsyncIterator[MachineRecord]:
    """One that is gone when this ends."""
    record = await made(site, roster, shape, purpose)
    try:
        yield record
    finally:
        await unmade(site, roster, record.vm_id)
