"""Remove what belongs to no machine, while machines are created and destroyed.

The controller's reconciler requests it; `recovery.py` does the same at the agent's start. What has
a machine's id is removed under that machine's lock, and only if the machine still does not exist.
What has none is inspected and removed at once in the network's own thread.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from polydev.hostagent.machines.context import HostContext
from polydev.hostagent.machines.machine import erase
from polydev.hostagent.machines.record import MachineRecord
from polydev.hostagent.vmm.leftovers import end_leftovers
from polydev.shared.host_protocol import VM_ID_PATTERN, Swept

log = logging.getLogger("polydev.hostagent")


async def sweep(
    host: HostContext,
    records: Mapping[str, MachineRecord],
    lock_machine: Callable[[str], AbstractAsyncContextManager[None]],
) -> Swept:
    """Remove VMMs, folders, addresses, TAPs, rules and sockets of unknown machines.

    `records` is live. A folder with an unreadable record stays for the operator.
    Raises: NetworkFailed.
    """
    pids = host.driver.find_orphans([host.folder(vm_id).path for vm_id in records])
    await end_leftovers(pids)
    folders = set(await asyncio.to_thread(_folders, host.machines_dir))
    addresses = set((await host.network.state()).addresses)
    removed = []
    for vm_id in sorted((folders | addresses) - records.keys()):
        async with lock_machine(vm_id):
            if vm_id not in records and await _is_orphan(host, vm_id):
                log.warning("removing leftovers of %s, which is not a machine", vm_id)
                await erase(host, vm_id, None)
                removed.append(vm_id)
    return Swept(
        processes=sorted(pids),
        folders=[vm_id for vm_id in removed if vm_id in folders],
        addresses=[vm_id for vm_id in removed if vm_id in addresses],
        taps=list(await host.network.sweep(None)),
        sockets=await asyncio.to_thread(_remove_sockets, host.sockets_dir, set(records)),
    )


async def _is_orphan(host: HostContext, vm_id: str) -> bool:
    """Return True if there is a trace of a machine without a record."""
    folder = host.folder(vm_id)
    if await asyncio.to_thread(folder.path.exists):
        return not await asyncio.to_thread(folder.record.exists)
    return vm_id in (await host.network.state()).addresses


def _folders(root: Path) -> list[str]:
    return [path.name for path in root.iterdir() if re.match(VM_ID_PATTERN, path.name)]


def _remove_sockets(root: Path, vm_ids: set[str]) -> list[str]:
    """Remove sockets of unknown machines."""
    removed = []
    for path in root.glob("vm-*"):
        if path.is_socket() and not any(path.name.startswith(vm_id) for vm_id in vm_ids):
            path.unlink(missing_ok=True)
            removed.append(path.name)
    return sorted(removed)
