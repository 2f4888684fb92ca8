"""`polydev image warm`: has this host's agent make what browser machines are cloned of.

It makes that by itself in a quiet moment after the first login; this is for who wants the first
login to be fast, and for tests and benchmarks.
"""

from __future__ import annotations

import asyncio

from polydev.cli.options import JsonFlag, runs
from polydev.cli.output.printer import Terminal
from polydev.cli.supervisor import preflight
from polydev.controller.settings import ControllerSettings
from polydev.shared.errors import MachineNotReady
from polydev.shared.host_client import Host
from polydev.shared.host_protocol import WarmShape, WarmView
from polydev.shared.settings.base import read

_LOOK_S = 1.0


@runs
async def warm(as_json: JsonFlag = False) -> None:
    """Make what browser machines are cloned of now, and wait for it: half a minute, or several.

    The host agent must run. Example: `polydev image warm`.
    """
    preflight.root()
    terminal = Terminal(as_json=as_json)
    settings = read(ControllerSettings)
    shape = WarmShape(
        memory_mib=settings.browser_memory_mib,
        vcpus=settings.browser_vcpus,
        disk_mib=settings.browser_disk_mib,
    )
    async with (
        Host(settings.host_socket) as host,
        terminal.step("Making a template of warm browser machines") as step,
    ):
        view = await _wait_until_ready(host, shape)
        step.detail = view.words
    if as_json:
        terminal.answer(view.model_dump())


async def _wait_until_ready(host: Host, shape: WarmShape) -> WarmView:
    """Raises: MachineNotReady that says why there is none."""
    await host.warm_up(shape)
    view = await host.warmth()
    while view.state == "making":
        await asyncio.sleep(_LOOK_S)  # nothing tells when it is made
        view = await host.warmth()
    if view.state == "off":
        raise MachineNotReady(
            f"Browser machines are not cloned here: {view.words}",
            hint="Set POLYDEV_WARM_START=true",
        )
    if view.state == "none":
        raise MachineNotReady(f"There is no template of warm browser machines: {view.words}")
    return view
