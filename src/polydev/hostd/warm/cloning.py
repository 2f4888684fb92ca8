"""Makes clones of a template: restored, and then renewed into machines of their own.

`warmth.py` calls it. A clone that was restored is still the machine that was saved, with that one's
keys, and cut off from the VM network; one that was renewed has nothing of it left. Cut or failed
anywhere, a clone is ended; its folder is the caller's.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass

from polydev.errors import GuestMisbehaved, SnapshotUnusable
from polydev.hostd.machine import PreparedMachine, RunningMachine, running
from polydev.hostd.site import Channel, Site
from polydev.hostd.snapshots import MemoryKey, reading
from polydev.hostd.uncut import to_its_end
from polydev.hostd.vmm.vmm import RunningVmm
from polydev.hostd.warm import guest
from polydev.hostd.warm.making import fits
from polydev.hostd.warm.templates import Template


@dataclass(frozen=True, slots=True, eq=False)
class Restored:
    """A clone that still is the machine that was saved."""

    template: Template
    vmm: RunningVmm


async def restored(
    site: Site, template: Template, key: MemoryKey | None, prepared: PreparedMachine
) -> Restored:
    """A clone with a disk of its own, that runs. `prepared` has no disk yet.

    Raises: SnapshotUnusable, and what a driver raises.
    """
    if not await fits(site, template, prepared.spec):
        raise SnapshotUnusable("The template of warm browser machines is of another kind")
    await to_its_end(
        site.furnishing.clone_disk(template.folder, prepared.folder, prepared.record)
    )
    async with reading(template.memory, key) as source:
        vmm = await site.driver.restore(prepared.spec, source)
    try:
        await vmm.go_on()
    except BaseException:
        await vmm.kill()
        raise
    return Restored(template, vmm)


async def renewed(site: Site, prepared: PreparedMachine, clone: Restored) -> RunningMachine:
    """The machine that `prepared` describes, made of a clone; its template's keys do not open it.

    The caller sets the limit. Raises: GuestMisbehaved, ChannelLost; the clone is ended then.
    """
    try:
        drive = await asyncio.to_thread(prepared.folder.config_drive.read_bytes)
        old = await site.furnishing.channel(clone.template.folder, clone.vmm)
        try:
            await guest.renew(old, os.urandom(guest.SEED_BYTES), drive)
        finally:
            await old.close()
        machine = await running(site, prepared.folder, clone.vmm)
        await machine.channel.connect()
        await _require_shut(site, prepared, clone)
    except BaseException:
        await clone.vmm.kill()
        raise
    return machine


async def _require_shut(site: Site, prepared: PreparedMachine, clone: Restored) -> None:
    """That who has the template's keys is refused. Raises: GuestMisbehaved."""
    stranger: Channel | None = await site.furnishing.strangers_channel(
        prepared.folder, clone.template.folder, clone.vmm
    )
    if stranger is None:
        return
    try:
        await stranger.connect()
    except GuestMisbehaved:
        return
    finally:
        await stranger.close()
    raise GuestMisbehaved("A clone let in who has the keys of its template")
