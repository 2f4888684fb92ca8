"""`polydev doctor`: looks at everything that must be right, each line ok or what to do.

Looks at this machine, at the host agent as root, and asks the controller what it sees.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import typer

from polydev.cli import agent, requirements
from polydev.cli.controller import controller
from polydev.cli.instance import Instance
from polydev.cli.options import JsonFlag, runs
from polydev.cli.terminal import Terminal
from polydev.errors import Failed, PolydevError
from polydev.hostapi import Inventory
from polydev.hostd.images import ImageKind, ImageStore
from polydev.hostd.network import netns
from polydev.settings import HostSettings, read


@dataclass(frozen=True, slots=True)
class Check:
    """One line."""

    name: str
    ok: bool
    message: str
    hint: str = ""


@runs
async def doctor(as_json: JsonFlag = False) -> None:
    """Look for what is wrong and say what to do; exit code 1 if something is.

    Example: `polydev doctor`, `polydev doctor --json`.
    """
    terminal = Terminal(as_json=as_json)
    checks = await examine(read(HostSettings))
    if as_json:
        terminal.answer({"ok": all(c.ok for c in checks), "checks": [asdict(c) for c in checks]})
    else:
        for check in checks:
            terminal.check(check.ok, check.name, check.message, check.hint)
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


async def examine(settings: HostSettings) -> list[Check]:
    """All checks, in the order in which one would mend things."""
    checks = [
        await _check("root", _root),
        *[await _check("tools", _tool(name)) for name in _missing_tools()],
        await _check("kernel", _kernel),
        *[await _check("images", _image(settings, kind)) for kind in ImageKind],
        await _check("disk space", _room(settings.state_dir)),
        await _check("polydev", _instance(settings)),
        await _check("host agent", _host_agent(settings)),
        await _check("namespace", _namespace(settings)),
        await _check("orphans", _orphans(settings)),
    ]
    if not _missing_tools():
        checks.insert(1, Check("tools", True, f"all {len(requirements.TOOLS)} are installed"))
    return checks + await _controllers()


Examination = Callable[[], Awaitable[str]]


async def _check(name: str, examination: Examination) -> Check:
    try:
        return Check(name, True, await examination())
    except PolydevError as error:
        return Check(name, False, error.message, error.hint)


async def _root() -> str:
    requirements.root()
    return "running as root"


def _missing_tools() -> list[str]:
    missing = []
    for name in requirements.TOOLS:
        try:
            requirements.tool(name)
        except PolydevError:
            missing.append(name)
    return missing


def _tool(name: str) -> Examination:
    async def examine_tool() -> str:
        requirements.tool(name)
        return name

    return examine_tool


async def _kernel() -> str:
    requirements.tun()
    kvm = "present" if os.access("/dev/kvm", os.R_OK | os.W_OK) else "not usable"
    return f"Linux {os.uname().release}, /dev/net/tun present, /dev/kvm {kvm}"


def _image(settings: HostSettings, kind: ImageKind) -> Examination:
    async def examine_image() -> str:
        found = ImageStore(settings.images_dir).require(kind)
        return f"{found.name}, {found.size / 2**20:.0f} MiB"

    return examine_image


def _room(folder: Path) -> Examination:
    async def examine_room() -> str:
        return requirements.disk_space(folder)

    return examine_room


def _instance(settings: HostSettings) -> Examination:
    async def examine_instance() -> str:
        pid = Instance(settings.state_dir).pid()
        if pid is None:
            raise Failed(f"Nothing runs in {settings.state_dir}", hint="Start it: polydev up")
        return f"runs in {settings.state_dir} as process {pid}"

    return examine_instance


def _host_agent(settings: HostSettings) -> Examination:
    async def examine_agent() -> str:
        async with agent.agent(settings.host_socket, timeout_s=10) as there:
            health = await there.health()
        return f"answers at {settings.host_socket}: {health.driver} ({health.accelerator})"

    return examine_agent


def _namespace(settings: HostSettings) -> Examination:
    async def examine_namespace() -> str:
        if not netns.exists(settings.netns):
            raise Failed(
                f"The network namespace {settings.netns} is not there",
                hint="`polydev up` makes it; restart it if it runs",
            )
        return f"{settings.netns} is there"

    return examine_namespace


def _orphans(settings: HostSettings) -> Examination:
    async def examine_orphans() -> str:
        async with agent.agent(settings.host_socket, timeout_s=30) as there:
            found = await there.inventory()
        left = orphans(found)
        if left:
            raise Failed(
                f"Left behind by no machine: {', '.join(left)}",
                hint="Restart with `polydev down` and `polydev up`: the host agent sweeps them",
            )
        return f"none; {len(found.machines)} machines"

    return examine_orphans


def orphans(found: Inventory) -> list[str]:
    """What exists on a host and belongs to no machine."""
    known = set(found.machines)
    left = sorted({*found.folders, *found.processes, *found.addresses} - known)
    if len(found.taps) > len(found.addresses):
        left.append(f"{len(found.taps) - len(found.addresses)} TAPs")
    return left + sorted(set(found.firewall) - set(found.taps))


async def _controllers() -> list[Check]:
    """What the controller sees; one line if it cannot be asked."""
    try:
        async with controller() as there:
            answer = await there.get("/api/doctor")
    except PolydevError as error:
        return [Check("controller", False, error.message, error.hint)]
    rows = [
        Check(str(row["name"]), bool(row["ok"]), str(row["message"]), str(row["hint"] or ""))
        for row in answer["checks"]
    ]
    return [row for row in rows if row.name != "host agent" or not row.ok]  # looked at above
