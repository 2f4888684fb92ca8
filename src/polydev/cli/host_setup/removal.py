"""Taking a host's set-up back: machines first, then what ran them, then what was made for them.

Without `purge`, machines are stopped and everything of people's stays: the state folder, settings,
the key, and the user who owns it. Cut anywhere, it goes on when it is asked again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from polydev.cli import agent
from polydev.cli.down import kill_in_namespace
from polydev.cli.host_setup import items, units
from polydev.cli.host_setup.items import Item
from polydev.cli.host_setup.place import Place
from polydev.cli.instance import Instance
from polydev.cli.terminal import Terminal
from polydev.errors import MachineBusy, PolydevError
from polydev.hostd.network import Network, netns
from polydev.settings import HostSettings


async def uninstall(
    place: Place, settings: HostSettings, order: Sequence[Item], terminal: Terminal, *, purge: bool
) -> list[str]:
    """Take everything back. Returns what stays, in words. Raises PolydevError."""
    if place.is_this_machine:
        if Instance(settings.state_dir).pid() is not None:
            raise Instance(settings.state_dir).already_running()
        await _end_machines(settings, terminal, purge=purge)
        await _end_services(place, terminal)
        await _remove_network(settings, terminal)
    async with terminal.step("Removing what the set-up made"):
        return await items.undo(order, purge=purge)


async def _end_machines(settings: HostSettings, terminal: Terminal, *, purge: bool) -> None:
    """Through the agent, if there is one; what it cannot end is killed with the network."""
    with suppress(PolydevError):
        async with agent.agent(settings.host_socket) as there:
            found = await there.inventory()
            for vm_id in found.machines if purge else sorted(found.processes):
                async with terminal.step(f"{'Destroying' if purge else 'Stopping'} {vm_id}"):
                    if purge:
                        await there.destroy(vm_id)
                    else:
                        await _stop(there, vm_id)


async def _stop(there: agent.Agent, vm_id: str) -> None:
    """One that is nobody's yet has nothing that is to be kept."""
    try:
        await there.stop(vm_id)
    except MachineBusy:
        await there.destroy(vm_id)


async def _end_services(place: Place, terminal: Terminal) -> None:
    if not units.is_booted(place):
        return
    async with terminal.step("Ending controller and host agent"):
        for unit in reversed(units.UNITS):
            if place.at(f"{units.FOLDER}/{unit}").exists():
                await asyncio.to_thread(units.systemctl, "stop", unit)


async def _remove_network(settings: HostSettings, terminal: Terminal) -> None:
    """The VM network, with whatever still runs in it, if the host agent ever made it."""
    if not netns.exists(settings.netns) and not (settings.state_dir / "network").exists():
        return
    async with terminal.step("Removing the VM network"):
        await kill_in_namespace(settings.netns)
        await Network.from_settings(settings).remove()
