"""`polydev host`: VM hosts. For administrators."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

import typer

from polydev.cli import options
from polydev.cli.client.api_client import Json, open_client
from polydev.cli.host_setup import setup
from polydev.cli.options import JsonFlag, runs
from polydev.cli.output.confirm import require_confirmation
from polydev.cli.output.printer import Terminal, moment

app = options.app("Manage VM hosts, which run the machines. `POLYDEV_HOSTS` names them.")

_HOSTS = "/api/admin/hosts"

app.command(name="setup")(setup)

Which = Annotated[
    str, typer.Argument(metavar="HOST", help="Name of a host, from `polydev host list`.")
]

Why = Annotated[str, typer.Option("--reason", help="Reason, for the audit log.")]


@app.command(name="list")
@runs
async def list_hosts(as_json: JsonFlag = False) -> None:
    """List the hosts with their capacity and usage. Example: `polydev host list`."""
    terminal = Terminal(as_json=as_json)
    async with open_client() as api:
        hosts = await api.get(_HOSTS)
    if as_json:
        return terminal.answer(hosts)
    columns = ("host", "state", "machines", "memory (MiB)", "vCPUs", "driver", "last seen")
    terminal.table(columns, (_row(host) for host in hosts))


@app.command()
@runs
async def drain(which: Which, reason: Why, as_json: JsonFlag = False) -> None:
    """Place no new machines on a host; its existing machines keep running.

    Example: `polydev host drain local --reason "new disks"`.
    """
    await _change(which, "drain", reason, as_json=as_json)


@app.command()
@runs
async def activate(which: Which, reason: Why, as_json: JsonFlag = False) -> None:
    """Place new machines on a drained host again.

    Example: `polydev host activate local --reason "disks are in"`.
    """
    await _change(which, "activate", reason, as_json=as_json)


@app.command()
@runs
async def remove(
    which: Which,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Remove a host that has no machines and that no `POLYDEV_HOSTS` names.

    Example: `polydev host remove old`.
    """
    await require_confirmation(f"Remove the host {which}?", yes=yes)
    async with open_client() as api:
        await api.delete(f"{_HOSTS}/{quote(which, safe='')}")
    if as_json:
        Terminal(as_json=True).answer({"hostId": which, "removed": True})


async def _change(which: str, verb: str, reason: str, *, as_json: bool) -> None:
    terminal = Terminal(as_json=as_json)
    async with open_client() as api:
        host = await api.post(f"{_HOSTS}/{quote(which, safe='')}/{verb}", {"reason": reason})
    if as_json:
        return terminal.answer(host)
    terminal.say(f"{host['hostId']}: {host['state']}, {host['machines']} machines")


def _row(host: Json) -> tuple[str, ...]:
    return (
        host["hostId"],
        host["state"],
        str(host["machines"]),
        f"{host['memoryTakenMib']} of {host['memoryMib']}",
        f"{host['vcpusTaken']} of {host['vcpus']}",
        f"{host['driver']} ({host['accelerator']})",
        moment(host["seenAt"]) if host["seenAt"] else "never",
    )
