"""Build a template: boot an internal browser machine, wait for its browser, save it.

The pool does this in the background. The machine has its own keys and token, which no clone keeps,
and is destroyed afterwards, whatever happens.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from polydev.hostagent.machines.context import HostContext
from polydev.hostagent.machines.machine import PreparedMachine, RunningMachine, last_spec
from polydev.hostagent.machines.record import MachineRecord, NetworkAttachment
from polydev.hostagent.machines.registry import MachineRegistry
from polydev.hostagent.snapshots import Labels, MemoryKey, create_snapshot
from polydev.hostagent.system.cancellation import run_in_thread_shielded
from polydev.hostagent.vmm.contract import LaunchSpec
from polydev.hostagent.warm_pool import guest_scripts, internal_machines
from polydev.hostagent.warm_pool.cpu_priority import Priority
from polydev.hostagent.warm_pool.templates import Description, Template, Templates
from polydev.shared.domain import MachineKind, MachineSize, MachineState
from polydev.shared.errors import MachineNotReady

log = logging.getLogger("polydev.hostagent")

_PURPOSE = "warm-template"
_NOWHERE = NetworkAttachment(tap="", mac="", address="", prefix=0, channel_port=0, channel_mac="")
_CLOSE_LIMIT_S = 5


async def build_template(
    host: HostContext,
    registry: MachineRegistry,
    templates: Templates,
    shape: MachineSize,
    limit_s: float,
) -> Template:
    """Build the template for browser machines of that shape; it replaces any other.

    Raises: MachineNotReady if the browser is not up within `limit_s`, and what `prepare` and a
    driver raise.
    """
    began = time.monotonic()
    key = await run_in_thread_shielded(host.memory_keys.load_or_create)
    async with internal_machines.temporary(host, registry, shape, _PURPOSE) as prepared:
        described = Description(
            shape=shape,
            image=prepared.record.image,
            kernel=prepared.record.kernel,
            fingerprint=await fingerprint(host, prepared.spec),
            key_id=key.id,
        )
        machine = await prepared.launch(host)
        registry.running[prepared.record.vm_id] = machine
        try:
            async with asyncio.timeout(limit_s):
                await _settled(machine, limit_s)
        except TimeoutError:
            raise MachineNotReady(
                f"The browser of {prepared.record.vm_id} was not ready within {limit_s:g} s"
            ) from None
        template = await _saved(host, templates, key, prepared, machine, described)
    log.info("built a template of warm browser machines in %.1f s", time.monotonic() - began)
    return template


async def fingerprint(host: HostContext, spec: LaunchSpec) -> str:
    """Describe what a template depends on: driver, shared configuration, guest scripts.

    Raises: MissingTool, VmmFailed, MissingImage.
    """
    vmm = await host.driver.fingerprint(spec)
    config_digest = await asyncio.to_thread(host.provisioner.config_digest, MachineKind.BROWSER)
    scripts = await asyncio.to_thread(guest_scripts.digest)
    return f"{vmm}environment: {config_digest}\nscripts: {scripts}\n"


async def fits(host: HostContext, template: Template, spec: LaunchSpec) -> bool:
    """Return True if a clone of the template would match `spec`."""
    current = await fingerprint(host, replace(spec, disk=template.folder.disk))
    return current == template.described.fingerprint


async def fits_now(host: HostContext, template: Template, shape: MachineSize) -> bool:
    """Return True if it can be cloned for a new machine of that shape.

    Raises: MissingImage, MissingTool, VmmFailed.
    """
    if template.described.shape != shape:
        return False
    boot = await host.provisioner.boot_files(MachineKind.BROWSER)
    record = MachineRecord(
        vm_id=template.folder.vm_id,
        machine_kind=MachineKind.BROWSER,
        **shape.fields(),
        labels={},
        state=MachineState.CREATING,
        created_at=datetime.now(UTC),
        uid=0,
        image=boot.image,
        kernel=boot.kernel,
        place=_NOWHERE,
    )
    return await fits(host, template, await last_spec(host, record))


async def _settled(machine: RunningMachine, limit_s: float) -> None:
    await asyncio.to_thread(Priority().lower, machine.vmm.pid)
    await machine.wait_until_ready(limit_s)
    await guest_scripts.settle(machine.channel)
    async with asyncio.timeout(_CLOSE_LIMIT_S):
        await machine.channel.close()


async def _saved(
    host: HostContext,
    templates: Templates,
    key: MemoryKey,
    prepared: PreparedMachine,
    machine: RunningMachine,
    described: Description,
) -> Template:
    """Save the memory, then the disk that matches it: nothing writes to it any more."""
    with templates.draft() as draft:
        labels = Labels(host.driver.name, described.fingerprint)
        async with create_snapshot(draft.path / "memory", labels, key) as sink:
            await machine.vmm.save(sink)
        await machine.vmm.kill()
        await host.provisioner.save_disk(prepared.folder, draft)
        await run_in_thread_shielded(_copy_keys, prepared.folder.keys, draft.keys)
        return await run_in_thread_shielded(templates.finish, draft, described)


def _copy_keys(source: Path, target: Path) -> None:
    target.mkdir(mode=0o700)
    for path in source.iterdir():
        descriptor = os.open(target / path.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(path.read_bytes())
