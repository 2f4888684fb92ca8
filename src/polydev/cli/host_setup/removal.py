"""Removal of a host's setup: machines first, then services and network, then resources.

Without `purge`, machines are stopped and all user data stays: the state folder, the settings, the
key and the user that owns them. An interrupted removal can be run again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from polydev.cli.host_setup import resource
from polydev.cli.host_setup.resource import Resource
from polydev.cli.host_setup.resources import units
from polydev.cli.host_setup.target_root import TargetRoot
from polydev.cli.output.printer import Terminal
from polydev.cli.supervisor.pidfile import Instance
from polydev.cli.supervisor.shutdown import kill_in_namespace
from polydev.hostagent.network import Network
from polydev.hostagent.settings import HostSettings
from polydev.hostagent.system import namespaces
from polydev.shared.errors import MachineBusy, PolydevError
from polydev.shared.host_client import HostClient, local_agent


async def uninstall(
    target: TargetRoot,
    settings: HostSettings,
    order: Sequence[Resource],
    terminal: Terminal,
    *,
    purge: bool,
) -> list[str]:
    """Remove the setup. Returns descriptions of what stays. Raises PolydevError."""
    if target.is_this_machine:
        if Instance(settings.state_dir).pid() is not None:
            raise Instance(settings.state_dir).already_running()
        await _end_machines(settings, terminal, purge=purge)
        await _end_services(target, terminal)
        await _remove_network(settings, terminal)
    async with terminal.step("Removing users, folders, units and programs"):
        return await resource.revert(order, purge=purge)


async def _end_machines(settings: HostSettings, terminal: Terminal, *, purge: bool) -> None:
    # Machines that the agent cannot stop are killed with the network.
    with suppress(PolydevError):
        async with HostClient(settings.host_socket, timeout_s=local_agent.ANSWER_LIMIT_S) as host:
            found = await host.inventory()
            end = local_agent.destroy_machine if purge else _stop
            for vm_id in found.machines if purge else sorted(found.processes):
                with suppress(PolydevError):
                    async with terminal.step(f"{'Destroying' if purge else 'Stopping'} {vm_id}"):
                        await end(host, vm_id)


async def _stop(host: HostClient, vm_id: str) -> None:
    # A machine that cannot be stopped is not in use yet and holds no data.
    try:
        await local_agent.stop_machine(host, vm_id)
    except MachineBusy:
        await local_agent.destroy_machine(host, vm_id)


async def _end_services(target: TargetRoot, terminal: Terminal) -> None:
    if not units.is_booted(target):
        return
    async with terminal.step("Stopping the controller and the host agent"):
        for unit in reversed(units.UNITS):
            if target.at(f"{units.FOLDER}/{unit}").exists():
                await asyncio.to_thread(units.systemctl, "stop", unit)


async def _remove_network(settings: HostSettings, terminal: Terminal) -> None:
    """Remove the VM network, if there is one, and kill the processes in it."""
    if not namespaces.exists(settings.netns) and not (settings.state_dir / "network").exists():
        return
    async with terminal.step("Removing the VM network"):
        await kill_in_namespace(settings.netns)
        await Network.from_settings(settings).remove()
