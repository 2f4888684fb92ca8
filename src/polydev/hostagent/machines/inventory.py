"""Inventory of a host: its folders, processes, TAPs, rules and sockets.

Health checks, the reconciler and tests compare it with the records of the machines.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

from polydev.hostagent.machines.context import HostContext, Network
from polydev.hostagent.machines.machine import RunningMachine
from polydev.hostagent.settings import HostSettings
from polydev.hostagent.vmm import adoption, process
from polydev.hostagent.vmm.firecracker.jail import jail
from polydev.hostagent.vmm.qemu.command import PROGRAM
from polydev.shared.host_protocol import Inventory


async def inspect(
    host: HostContext, vm_ids: Sequence[str], running: Mapping[str, RunningMachine]
) -> Inventory:
    """Inspect the host of a running agent."""
    network = await host.network.state()
    folders, sockets, processes = await asyncio.to_thread(_inspect_disk, host, running)
    return Inventory(
        machines=sorted(vm_ids),
        folders=folders,
        processes=processes,
        taps=list(network.taps),
        addresses=dict(network.addresses),
        firewall=list(network.firewall),
        sockets=sockets,
    )


async def inspect_without_agent(
    settings: HostSettings, network: Network, vm_ids: Sequence[str]
) -> Inventory:
    """Inspect a host without an agent: VMMs are recognized by their folders."""
    state = await network.state()
    machines_dir = settings.state_dir / "machines"
    processes = await asyncio.to_thread(_vmms_in, machines_dir)
    return Inventory(
        machines=sorted(vm_ids),
        folders=_names_in(machines_dir),
        processes=processes,
        taps=list(state.taps),
        addresses=dict(state.addresses),
        firewall=list(state.firewall),
        sockets=_sockets_in(machines_dir, settings.sockets_dir),
    )


def _inspect_disk(
    host: HostContext, running: Mapping[str, RunningMachine]
) -> tuple[list[str], list[str], dict[str, int]]:
    known = {vm_id: machine.vmm.pid for vm_id, machine in running.items()}
    processes = {vm_id: pid for vm_id, pid in known.items() if Path(f"/proc/{pid}").exists()}
    strangers = set(host.driver.find_orphans([])) - set(known.values())
    return (
        _names_in(host.machines_dir),
        _sockets_in(host.machines_dir, host.sockets_dir),
        processes | {f"unknown-{pid}": pid for pid in sorted(strangers)},
    )


def _names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def _sockets_in(*folders: Path) -> list[str]:
    return sorted(str(path) for root in folders for path in root.rglob("*") if path.is_socket())


def _vmms_in(folder: Path) -> dict[str, int]:
    root = folder.resolve()
    found = [*process.find_in_folder(root, PROGRAM), *jail.find_in_folder(root)]
    named = adoption.find_recorded(root / name for name in _names_in(root))
    folders = {pid: where for pid, where, exists in found if exists} | named
    return {folders[pid].name if pid in folders else f"unknown-{pid}": pid for pid, *_ in found}
