"""`polydev image warm`: create the template of warm browser machines.

The host agent creates it automatically after the first login. This command makes the first login
fast, too; tests and benchmarks use it.
"""

from __future__ import annotations

import asyncio

from polydev.cli.options import JsonFlag, runs
from polydev.cli.output.printer import Terminal
from polydev.cli.supervisor import preflight
from polydev.controller.settings import ControllerSettings
from polydev.shared.domain import MachineKind, MachineSize
from polydev.shared.errors import MachineNotReady
from polydev.shared.host_client import HostClient, local_agent
from polydev.shared.host_protocol import WarmView
from polydev.shared.settings.base import read

_LOOK_S = 1.0


@runs
async def warm(as_json: JsonFlag = False) -> None:
    """Create the template of warm browser machines now. Takes half a minute or longer.

    The host agent must be running. Example: `polydev image warm`.
    """
    preflight.root()
    terminal = Terminal(as_json=as_json)
    settings = read(ControllerSettings)
    size = settings.machine_size(MachineKind.BROWSER)
    async with (
        local_agent.opened(HostClient(settings.host_socket)) as host,
        terminal.step("Creating the template of warm browser machines") as step,
    ):
        view = await _wait_until_ready(host, size)
        step.detail = view.words
    if as_json:
        terminal.answer(view.model_dump())


async def _wait_until_ready(host: HostClient, size: MachineSize) -> WarmView:
    """Create the template and wait for it. Raises MachineNotReady."""
    await host.warm_up(size)
    view = await host.warmth()
    while view.state == "making":
        await asyncio.sleep(_LOOK_S)  # the host agent has no notification for this
        view = await host.warmth()
    if view.state == "off":
        raise MachineNotReady(
            f"This host does not clone browser machines: {view.words}",
            hint="Set POLYDEV_WARM_START=true",
        )
    if view.state == "none":
        raise MachineNotReady(f"There is no template of warm browser machines: {view.words}")
    return view
