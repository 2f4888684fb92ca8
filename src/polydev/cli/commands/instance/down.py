"""`polydev down`: stop Polydev; with `--purge`, delete all its data too."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from polydev.cli.demo import demo_env
from polydev.cli.options import JsonFlag, runs
from polydev.cli.output.printer import Terminal
from polydev.cli.supervisor import preflight
from polydev.cli.supervisor.shutdown import end, stop_and_purge
from polydev.hostagent.settings import HostSettings
from polydev.shared.errors import Invalid
from polydev.shared.settings.base import read


@runs
async def down(
    purge: Annotated[
        bool,
        typer.Option(
            "--purge", help="Also destroy all machines and delete the state folder with all data."
        ),
    ] = False,
    demo: Annotated[
        bool, typer.Option("--demo", help="Stop the demo and delete its data.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Stop the Polydev in POLYDEV_STATE_DIR. Its machines keep running, except with `--purge`.

    Examples: `polydev down`; `polydev down --demo` after `polydev demo`.
    """
    preflight.root()
    terminal = Terminal(as_json=as_json)
    if demo:
        with demo_env.demo_lock(demo_env.enter()):  # fails while a demo runs
            did = await stop_and_purge(read(HostSettings), terminal)
            did |= await demo_env.remove(terminal)
    else:
        settings = read(HostSettings)
        if purge and not yes:
            _confirm(settings)
        did = await (stop_and_purge if purge else end)(settings, terminal)
    state_dir = read(HostSettings).state_dir
    if as_json:
        terminal.answer({"ended": did, "state_dir": str(state_dir)})
    elif not did:
        terminal.say(f"Polydev is not running in {state_dir}.")


def _confirm(settings: HostSettings) -> None:
    if not sys.stdin.isatty():
        raise Invalid(
            f"--purge deletes {settings.state_dir} with all machines and credentials",
            hint="Pass --yes to confirm",
        )
    typer.confirm(
        f"Delete {settings.state_dir} with all machines and credentials of its users?", abort=True
    )
