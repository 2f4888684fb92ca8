"""What exists on this host, found by looking: folders, processes, TAPs, rules, sockets.

`machines.py` answers with it; doctor, the reconciler and the tests compare it with what should be.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

from polydev.hostapi import Inventory
from polydev.hostd.machine import RunningMachine
from polydev.hostd.site import Site


async def look(
    site: Site, vm_ids: Sequence[str], running: Mapping[str, RunningMachine]
) -> Inventory:
    """Everything of this host's machines that is there now."""
    network = await site.network.state()
    folders, sockets, processes = await asyncio.to_thread(_on_disk_and_running, site, running)
    return Inventory(
        machines=sorted(vm_ids),
        folders=folders,
        processes=processes,
        taps=list(network.taps),
        addresses=dict(network.addresses),
        firewall=list(network.firewall),
        sockets=sockets,
    )


def _on_disk_and_running(
    site: Site, running: Mapping[str, RunningMachine]
) -> tuple[list[str], list[str], dict[str, int]]:
    folders = sorted(path.name for path in site.machines_dir.iterdir())
    sockets = sorted(
        str(path)
        for root in (site.machines_dir, site.sockets_dir)
        for path in root.rglob("*")
        if path.is_socket()
    )
    known = {vm_id: machine.vmm.pid for vm_id, machine in running.items()}
    processes = {vm_id: pid for vm_id, pid in known.items() if Path(f"/proc/{pid}").exists()}
    strangers = set(site.driver.leftovers([])) - set(known.values())
    return folders, sockets, processes | {f"unknown-{pid}": pid for pid in sorted(strangers)}
