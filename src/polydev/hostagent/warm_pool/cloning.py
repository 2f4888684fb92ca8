"""Makes a machine of a template: its memory restored, and then renewed into a machine of its own.

`warm_browsers.py` calls it. A clone that was restored is still the machine that was saved, with
that one's keys, and cut off from the VM network; one that was renewed has nothing of it left. Cut
or failed anywhere, a clone is ended; its folder is the caller's.
"""

from __future__ import annotations

import asyncio
import logging
import time

from polydev.hostagent.machines.context import HostContext
from polydev.hostagent.machines.machine import PreparedMachine, RunningMachine
from polydev.hostagent.snapshots import open_snapshot
from polydev.hostagent.system.cancellation import run_in_thread_shielded
from polydev.hostagent.vmm.console import CONSOLE_LOG_BYTES, BoundedLog
from polydev.hostagent.warm_pool import guest_scripts
from polydev.hostagent.warm_pool.cpu_priority import Priority
from polydev.hostagent.warm_pool.template_builder import fits
from polydev.hostagent.warm_pool.templates import Template
from polydev.shared.errors import GuestMisbehaved, SnapshotUnusable

log = logging.getLogger("polydev.hostagent")

_SILENT = b"A clone of a machine that was booted before: what that one printed is not here.\n"
"""The first line of a clone's console, which would look broken if it were empty."""


async def clone(
    host: HostContext,
    template: Template,
    prepared: PreparedMachine,
    priority: Priority | None = None,
) -> RunningMachine:
    """The machine that `prepared` describes, which has no disk yet. The caller sets the limit.

    With a priority its VMM lets others go first.

    Raises: SnapshotUnusable, GuestMisbehaved, ChannelLost, and what a driver raises.
    """
    began = time.monotonic()
    if not await fits(host, template, prepared.spec):
        raise SnapshotUnusable("The template of warm browser machines is of another kind by now")
    await host.provisioner.clone_disk(template.folder, prepared.folder, prepared.record)
    key = await asyncio.to_thread(host.memory_keys.load)
    console = BoundedLog(prepared.folder.console_log, CONSOLE_LOG_BYTES)
    await run_in_thread_shielded(console.append, _SILENT)
    async with open_snapshot(template.memory, key) as source:
        machine = await prepared.restore(host, source)
    restored_at = time.monotonic()
    try:
        if priority is not None:
            await asyncio.to_thread(priority.give_way, machine.vmm.pid)
        await machine.vmm.resume()
        await _renew(host, template, machine)
        await asyncio.gather(machine.channel.connect(), _require_shut(host, template, machine))
    except BaseException:
        await machine.kill()
        raise
    log.info(
        "%s: restored in %.2f s, renewed in %.2f s",
        prepared.record.vm_id,
        restored_at - began,
        time.monotonic() - restored_at,
    )
    return machine


async def _renew(host: HostContext, template: Template, machine: RunningMachine) -> None:
    """Let in by the template's keys, have the guest take its own."""
    drive = await asyncio.to_thread(machine.folder.config_drive.read_bytes)
    was = await host.provisioner.channel(template.folder, machine.vmm)
    try:
        await guest_scripts.renew(was, drive)
    finally:
        await was.close()


async def _require_shut(host: HostContext, template: Template, machine: RunningMachine) -> None:
    """That who has the template's keys is refused. Raises: GuestMisbehaved, ChannelLost."""
    stranger = await host.provisioner.strangers_channel(
        machine.folder, template.folder, machine.vmm
    )
    if stranger is None:
        return
    try:
        await stranger.connect()
    except GuestMisbehaved:
        return
    finally:
        await stranger.close()
    raise GuestMisbehaved("A clone lets in who has the keys of its template")
