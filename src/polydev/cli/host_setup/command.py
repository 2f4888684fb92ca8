"""The `polydev host setup` command: its resources, their order, and its output."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

import typer
from pydantic import Field

from polydev.cli.host_setup import resource
from polydev.cli.host_setup.removal import uninstall as remove_everything
from polydev.cli.host_setup.resource import Resource, State, Status
from polydev.cli.host_setup.resources import kernel
from polydev.cli.host_setup.resources.accounts import ControllerUser, MachineUids
from polydev.cli.host_setup.resources.firecracker import Firecracker
from polydev.cli.host_setup.resources.folders import StateFolder
from polydev.cli.host_setup.resources.program import Program
from polydev.cli.host_setup.resources.release import Release
from polydev.cli.host_setup.resources.services import Services
from polydev.cli.host_setup.resources.settings_files import SettingsFiles, load_installed_settings
from polydev.cli.host_setup.resources.units import Units
from polydev.cli.host_setup.target_root import TargetRoot
from polydev.cli.options import JsonFlag, runs
from polydev.cli.output.confirm import require_confirmation
from polydev.cli.output.printer import Terminal
from polydev.cli.supervisor import preflight
from polydev.hostagent.settings import HostSettings
from polydev.shared.errors import Invalid
from polydev.shared.settings.base import read

_IS_OK = {State.OK: True, State.CHANGED: True, State.MISSING: False, State.ADVICE: None}

Check = Annotated[
    bool, typer.Option("--check", help="Only check. Exits with 1 if something is missing.")
]
Uninstall = Annotated[
    bool, typer.Option("--uninstall", help="Stop the machines and remove Polydev from this host.")
]
Purge = Annotated[
    bool, typer.Option("--purge", help="With --uninstall: also delete all user data.")
]


class SetupSettings(HostSettings):
    """Settings of `host setup` besides those of the host agent."""

    user: str = Field("polydev", pattern="^[a-z_][a-z0-9_-]{0,31}$")
    """The system user that the controller runs as."""
    setup_root: Path = Path("/")
    """Root folder of the system to set up. For tests and images."""
    firecracker_mirror: str | None = Field(None, pattern=r"^https?://[^?#@\s]+$")
    """Mirror of Firecracker's releases. Unset: where the project publishes them."""
    firecracker_sha256: str | None = None
    """SHA-256 of the release's archive. Unset: the pinned one."""


@runs
async def setup(
    check: Check = False,
    uninstall: Uninstall = False,
    purge: Purge = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    firecracker_archive: Annotated[
        Path | None,
        typer.Option(
            help="Install Firecracker from this archive instead of downloading it.", dir_okay=False
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Set up this machine as a VM host: user, folders, units, Firecracker.

    You can run it again. Each line reports ok, a change, or what to do. Examples: `polydev host
    setup`, `polydev host setup --check --json`, `polydev host setup --uninstall`.
    """
    if (check and uninstall) or (purge and not uninstall):
        raise Invalid("Use --check or --uninstall, and --purge only with --uninstall")
    preflight.root()
    target = TargetRoot(read(SetupSettings).setup_root)
    load_installed_settings(target, os.environ)
    settings = read(SetupSettings)
    order = all_resources(target, settings, firecracker_archive)
    terminal = Terminal(as_json=as_json)
    if check:
        return await _report(resource.check(order), terminal)
    if not uninstall:
        with target.lock():
            return await _report(resource.apply(order), terminal)
    scope = "with all user data" if purge else "and stop its machines (data stays)"
    await require_confirmation(f"Remove Polydev from this machine {scope}?", yes=yes)
    with target.lock():
        remaining = await remove_everything(target, settings, order, terminal, purge=purge)
    _report_remaining(remaining, terminal, purge=purge)


def _report_remaining(remaining: list[str], terminal: Terminal, *, purge: bool) -> None:
    if terminal.as_json:
        return terminal.answer({"ok": True, "kept": remaining})
    for description in remaining:
        terminal.say(f"Kept: {description}")
    if remaining and not purge:
        terminal.say("To remove that too, run `polydev host setup --uninstall --purge`.")


def all_resources(
    target: TargetRoot, settings: SetupSettings, archive: Path | None = None
) -> list[Resource]:
    """All resources of a host; each depends on those before it."""
    release = Release.wanted(settings.firecracker_mirror, settings.firecracker_sha256)
    state_dir, user = settings.state_dir, settings.user
    return [
        kernel.Tools(),
        ControllerUser(target, user, state_dir / "controller"),
        MachineUids(target),
        StateFolder(target, user, state_dir),
        SettingsFiles(target, user),
        Program(target),
        kernel.Modules(target),
        kernel.Kvm(),
        kernel.Sysctls(target),
        kernel.Cgroups(target),
        kernel.Isolation(target),
        Firecracker(target, release, archive, settings.driver),
        Units(target, user, state_dir),
        Services(target, settings),
    ]


async def _report(results: AsyncIterator[Status], terminal: Terminal) -> None:
    """Print each status as it arrives. Exits with 1 if something is missing."""
    statuses = []
    async for status in results:
        statuses.append(status)
        if not terminal.as_json:
            did = "changed: " if status.state is State.CHANGED else ""
            terminal.check(_IS_OK[status.state], status.name, did + status.message, status.hint)
    is_well = all(status.is_well for status in statuses)
    if terminal.as_json:
        terminal.answer({"ok": is_well, "items": [status.as_json() for status in statuses]})
    if not is_well:
        raise typer.Exit(1)
