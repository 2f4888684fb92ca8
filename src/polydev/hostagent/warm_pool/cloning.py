"""Clone a machine from a template: restore its memory, then renew its identity.

A restored clone still has the template's keys and no access to the VM network. A renewed clone has
nothing of the template left. If cloning fails or is cancelled, the clone's VMM is killed; the
caller removes its folder.
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

_CONSOLE_NOTE = b"A clone of a machine that was booted before: what that one printed is not here.\n"
"""The first line of a clone's console log, which would otherwise be empty."""


async def clone(
    host: HostContext,
    template: Template,
    prepared: PreparedMachine,
    priority: Priority | None = None,
) -> RunningMachine:
    """Clone the machine that `prepared` describes; it has no disk yet.

    With `priority` its VMM yields to others. The caller sets the time limit.

    Raises: SnapshotUnusable, GuestMisbehaved, ChannelLost, and what a driver raises.
    """
    began = time.monotonic()
    if not await fits(host, template, prepared.spec):
        raise SnapshotUnusable("The template of warm browser machines no longer fits this host")
    await host.provisioner.clone_disk(template.folder, prepared.folder, prepared.record)
    key = await asyncio.to_thread(host.memory_keys.load)
    console = BoundedLog(prepared.folder.console_log, CONSOLE_LOG_BYTES)
    await run_in_thread_shielded(console.append, _CONSOLE_NOTE)
    async with open_snapshot(template.memory, key) as source:
        machine = await prepared.restore(host, source)
    restored_at = time.monotonic()
    try:
        if priority is not None:
            await asyncio.to_thread(priority.lower, machine.vmm.pid)
        await machine.vmm.resume()
        await _renew(host, template, machine)
        await asyncio.gather(
            machine.channel.connect(), _require_template_refused(host, template, machine)
        )
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
    """Connect with the template's keys, and have the guest take its own."""
    drive = await asyncio.to_thread(machine.folder.config_drive.read_bytes)
    channel = await host.provisioner.channel(template.folder, machine.vmm)
    try:
        await guest_scripts.renew(channel, drive)
    finally:
        await channel.close()


async def _require_template_refused(
    host: HostContext, template: Template, machine: RunningMachine
) -> None:
    """Verify that the template's keys are refused. Raises GuestMisbehaved, ChannelLost."""
    channel = await host.provisioner.foreign_channel(machine.folder, template.folder, machine.vmm)
    if channel is None:
        return
    try:
        await channel.connect()
    except GuestMisbehaved:
        return
    finally:
        await channel.close()
    raise GuestMisbehaved("A clone accepts the keys of its template")
