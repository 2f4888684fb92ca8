"""`polydev key`: encryption keys.

docs/operating.md describes how to change ENCRYPTION_KEY without downtime.
"""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from polydev.cli import options
from polydev.cli.client.api_client import ApiClient, Json, open_client
from polydev.cli.client.poll import POLL_INTERVAL_S
from polydev.cli.options import JsonFlag, runs
from polydev.cli.output.confirm import require_confirmation
from polydev.cli.output.printer import Terminal, moment
from polydev.shared.errors import Failed

app = options.app("Manage the keys that encrypt credentials.")

_KEYS = "/api/admin/keys"
_EARLIER = "(used by an older version)"


@app.command(name="list")
@runs
async def list_keys(as_json: JsonFlag = False) -> None:
    """List the keys, and how many rows each encrypts. Example: `polydev key list`."""
    terminal = Terminal(as_json=as_json)
    async with open_client() as api:
        keys = await api.get(_KEYS)
    if as_json:
        return terminal.answer(keys)
    columns = ("key", "current", "available", "credentials", "secrets", "since")
    terminal.table(columns, (_row(key) for key in keys))


@app.command()
@runs
async def rotate(as_json: JsonFlag = False) -> None:
    """Encrypt everything with the current key. Example: `polydev key rotate`.

    Polydev keeps running. Ctrl-C stops only this command, not the rotation; run it again to see the
    progress.
    """
    terminal = Terminal(as_json=as_json)
    async with open_client() as api:
        async with terminal.step("Encrypting everything with the current key") as step:
            state = await api.post(f"{_KEYS}/rotate")
            step.detail = _progress(state)
            while not state["over"]:
                await asyncio.sleep(POLL_INTERVAL_S)
                state = await api.get(f"{_KEYS}/rotate/{state['rotationId']}")
                step.detail = _progress(state)
            if state["left"]:
                raise Failed(
                    f"{state['left']} rows are not encrypted with {state['keyId']}",
                    hint="See the controller's log for the reason, and `polydev key list`",
                )
        await _report_unused_keys(api, terminal)
    if as_json:
        terminal.answer(state)


@app.command()
@runs
async def retire(
    key: Annotated[
        str, typer.Argument(metavar="KEY", help="Id of a key, from `polydev key list`.")
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Remove a key that encrypts nothing. Example: `polydev key retire key-0f3a5c7e9b1d`."""
    terminal = Terminal(as_json=as_json)
    async with open_client() as api:
        await require_confirmation(
            f"Retire {key}? No controller may still be configured with it.", yes=yes
        )
        await api.delete(f"{_KEYS}/{key}")
    if as_json:
        terminal.answer({"keyId": key, "retired": True})
    else:
        terminal.say(f"{key} is retired.")


def _row(key: Json) -> tuple[str, ...]:
    return (
        key["keyId"] or _EARLIER,
        "yes" if key["seals"] else "-",
        "yes" if key["opens"] else "no",
        str(key["credentials"]),
        str(key["secrets"]),
        moment(key["createdAt"]),
    )


def _progress(state: Json) -> str:
    return f"{state['left']} left" if state["left"] else str(state["keyId"])


async def _report_unused_keys(api: ApiClient, terminal: Terminal) -> None:
    for key in await api.get(_KEYS):
        if key["keyId"] and not (key["seals"] or key["credentials"] or key["secrets"]):
            terminal.say(
                f"{key['keyId']} encrypts nothing. When no controller is configured with it, run: "
                f"polydev key retire {key['keyId']}"
            )
