"""The `doctor` command: run all checks concurrently and print their findings.

Each check has a time limit, and its exceptions become findings, so that no check hides another.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from dataclasses import asdict
from typing import Annotated

import typer

from polydev.cli.client.api_client import ClientSettings
from polydev.cli.doctor import controller_side, outside_network, processes, this_machine
from polydev.cli.options import JsonFlag, runs
from polydev.cli.output.printer import Terminal
from polydev.hostagent.settings import HostSettings
from polydev.shared.domain import Finding
from polydev.shared.errors import BadSettings, PolydevError
from polydev.shared.settings.base import read

_LIMIT_S = 30.0
_CONTROLLER_LIMIT_S = 60.0
"""The controller runs the CLIs in machines, which start slowly without KVM."""


@runs
async def doctor(
    outside: Annotated[
        bool,
        typer.Option("--network", help="Also check the outside network: resolvers or the proxy."),
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Check for problems and print how to solve them. Exits with 1 if there is one.

    Examples: `polydev doctor`, `polydev doctor --json`, `polydev doctor --network`.
    """
    terminal = Terminal(as_json=as_json)
    found = await examine(outside=outside)
    is_well = all(finding.ok is not False for finding in found)
    if as_json:
        terminal.answer({"ok": is_well, "checks": [asdict(finding) for finding in found]})
    else:
        for finding in found:
            where = f"{finding.host_id}: " if finding.host_id else ""
            terminal.check(finding.ok, finding.name, where + finding.message, finding.hint)
    if not is_well:
        raise typer.Exit(1)


async def examine(*, outside: bool = False) -> list[Finding]:
    """Run all checks. Findings are in the order in which to solve them."""
    try:
        settings, client = read(HostSettings), read(ClientSettings)
    except BadSettings as error:
        return [Finding("settings", False, error.message, error.hint or "Correct the setting")]
    logging.getLogger("polydev").setLevel(logging.CRITICAL)  # findings report it already
    parts = [
        _limited("this machine", this_machine.check()),
        _limited("polydev", processes.check_instance(settings)),
        _limited("port", processes.check_port(client)),
        _limited("host agent", processes.check_host_agent(settings)),
        _limited("controller", controller_side.check(client), _CONTROLLER_LIMIT_S),
    ]
    if outside:
        parts.insert(-1, _limited("network", outside_network.check(settings)))
    found = await asyncio.gather(*parts)
    here = [finding for part in found[:-1] for finding in part]
    from_controller = (
        found[-1] if client.url else controller_side.without_duplicates(here, found[-1])
    )
    return [*here, *from_controller]


async def _limited(
    name: str, part: Awaitable[Sequence[Finding]], limit_s: float = _LIMIT_S
) -> Sequence[Finding]:
    try:
        async with asyncio.timeout(limit_s):
            return await part
    except TimeoutError:
        message = f"Unknown: the check took longer than {limit_s:g} s"
        return [Finding(name, False, message, "Try again; if that fails, restart Polydev")]
    except PolydevError as error:
        return [Finding(name, False, error.message, error.hint)]
    except PermissionError as error:
        message = f"Not checked: only root can open {error.filename}"
        return [Finding(name, None, message, "Run the command with sudo")]
