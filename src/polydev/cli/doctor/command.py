"""The command: the parts of the examination side by side, and what they found.

No part can keep another from being told: each has a time limit, and what it raises is a finding.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from dataclasses import asdict
from typing import Annotated

import typer

from polydev.cli.client.api_client import ClientSettings
from polydev.cli.doctor import controller_side, network, processes, this_machine
from polydev.cli.options import JsonFlag, runs
from polydev.cli.output.printer import Terminal
from polydev.hostagent.settings import HostSettings
from polydev.shared.domain import Finding
from polydev.shared.errors import BadSettings, PolydevError
from polydev.shared.settings.base import read

_LIMIT_S = 30.0
_CONTROLLER_LIMIT_S = 60.0
"""It asks the CLIs in machines, which take long to start where machines are emulated."""


@runs
async def doctor(
    outside: Annotated[
        bool, typer.Option("--network", help="Also send packets out: resolvers, or the proxy.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Look for what is wrong and say what to do; exit code 1 if something is.

    Example: `polydev doctor`, `polydev doctor --json`, `polydev doctor --network`.
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
    """All findings, in the order in which one would mend things."""
    try:
        settings, client = read(HostSettings), read(ClientSettings)
    except BadSettings as error:
        return [Finding("settings", False, error.message, error.hint or "Set it right")]
    logging.getLogger("polydev").setLevel(logging.CRITICAL)  # what is wrong is told once, below
    parts = [
        _limited("this machine", this_machine.check()),
        _limited("polydev", processes.instance(settings)),
        _limited("port", processes.port(client)),
        _limited("host agent", processes.host(settings)),
        _limited("controller", controller_side.ask(client), _CONTROLLER_LIMIT_S),
    ]
    if outside:
        parts.insert(-1, _limited("network", network.reach(settings)))
    found = await asyncio.gather(*parts)
    here = [finding for part in found[:-1] for finding in part]
    told = found[-1] if client.url else controller_side.without_duplicates(here, found[-1])
    return [*here, *told]


async def _limited(
    name: str, part: Awaitable[Sequence[Finding]], limit_s: float = _LIMIT_S
) -> Sequence[Finding]:
    try:
        async with asyncio.timeout(limit_s):
            return await part
    except TimeoutError:
        words = f"Not known: looking took more than {limit_s:g} s"
        return [Finding(name, False, words, "Look again; if it stays so, restart Polydev")]
    except PolydevError as error:
        return [Finding(name, False, error.message, error.hint)]
    except PermissionError as error:
        words = f"Not looked at: {error.filename} can be opened by root only"
        return [Finding(name, None, words, "Run it with sudo to see all")]
