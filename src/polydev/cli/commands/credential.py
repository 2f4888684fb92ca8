"""`polydev credential`: list, validate, export and revoke credentials."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from polydev.cli import options
from polydev.cli.client.api_client import ApiClient, Json, open_client
from polydev.cli.client.poll import wait_until
from polydev.cli.options import JsonFlag, runs
from polydev.cli.output.confirm import require_confirmation
from polydev.cli.output.printer import Terminal, moment
from polydev.shared.errors import BadPath, Failed, Invalid, NoSuchCredential

app = options.app("Manage the logins and API keys of your CLIs.")

_PATH = "/api/credentials"
_REVOKE_LIMIT_S = 60.0

Which = Annotated[
    str,
    typer.Argument(
        metavar="CREDENTIAL",
        help="Id of a credential, its first characters, or the name of its provider.",
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]


@app.command(name="list")
@runs
async def list_credentials(as_json: JsonFlag = False) -> None:
    """List your credentials. Example: `polydev credential list --json`."""
    terminal = Terminal(as_json=as_json)
    async with open_client() as api:
        found = await api.list_all(_PATH)
    if as_json:
        return terminal.answer(found)
    if not found:
        return terminal.say("No credentials. Create one with `polydev connect codex`.")
    columns = ("credential", "provider", "kind", "machine", "status", "expires")
    terminal.table(columns, (_row(it) for it in found))


@app.command()
@runs
async def validate(which: Which, as_json: JsonFlag = False) -> None:
    """Check whether the CLI in its machine is logged in, and store renewed tokens.

    Example: `polydev credential validate codex`.
    """
    terminal = Terminal(as_json=as_json)
    async with open_client() as api:
        found = await _resolve(api, which)
        verdict = await api.post(f"{_PATH}/{found['credentialId']}/validate")
    if as_json:
        terminal.answer({**found, **verdict})
    else:
        terminal.say(f"{verdict['validity']}: {verdict['reason']}")
    if verdict["validity"] != "valid":
        raise typer.Exit(1)


@app.command()
@runs
async def revoke(which: Which, yes: Yes = False, as_json: JsonFlag = False) -> None:
    """Delete a credential, here and in its CLI machine.

    Example: `polydev credential revoke codex --yes`.
    """
    terminal = Terminal(as_json=as_json)
    async with open_client() as api:
        found = await _resolve(api, which)
        name = f"{found['provider']} ({found['credentialId']})"
        await require_confirmation(
            f"Revoke the credential of {name}, here and in its machine?", yes=yes
        )
        async with terminal.step(f"Revoking {name}"):
            await api.post(f"{_PATH}/{found['credentialId']}/revoke")
            await _until_gone(api, found["credentialId"])
    if as_json:
        terminal.answer({"credentialId": found["credentialId"], "revoked": True})


@app.command()
@runs
async def export(
    which: Which,
    to: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="File to write, readable only by you; `-` is standard output."
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Overwrite the file.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Write a credential to a file, in its CLI's format. Anyone with the file is logged in.

    Example: `polydev credential export codex auth.json`.
    """
    if str(to) == "-" and sys.stdout.isatty():
        raise Invalid(
            "Polydev does not print secrets on a terminal", hint="Name a file, or use a pipe"
        )
    if str(to) != "-" and to.exists():
        await require_confirmation(f"Overwrite {to}?", yes=yes)
    async with open_client() as api:
        found = await _resolve(api, which)
        answer = await api.post(f"{_PATH}/{found['credentialId']}/export")
    content = json.dumps(answer["credentials"])
    if str(to) == "-":
        return print(json.dumps(answer) if as_json else content, flush=True)
    await asyncio.to_thread(_write_private, to, content.encode())
    terminal = Terminal(as_json=as_json)
    if as_json:
        return terminal.answer({**found, "file": str(to)})
    terminal.say(f"Wrote the credentials of {answer['provider']} to {to}. Keep this file safe.")


def _write_private(path: Path, content: bytes) -> None:
    """Write a file atomically, readable only by its owner. Raises BadPath."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            temporary.rename(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise BadPath(f"Cannot write {path} ({error.strerror})") from None


async def _resolve(api: ApiClient, which: str) -> Json:
    """Find a credential by provider or id. Raises NoSuchCredential, Invalid."""
    listed = [it for it in await api.list_all(_PATH) if not it["revoking"]]
    found = [it for it in listed if it["provider"] == which]
    found = found or [it for it in listed if it["credentialId"].startswith(which)]
    if len(found) > 1:
        raise Invalid(
            f"{which} matches {len(found)} credentials", hint="Use more characters of the id"
        )
    if not found:
        raise NoSuchCredential(
            f"There is no credential {which}",
            hint="List the credentials with `polydev credential list`",
        )
    return found[0]


async def _until_gone(api: ApiClient, credential_id: str) -> None:
    async def is_gone() -> bool:
        return all(it["credentialId"] != credential_id for it in await api.list_all(_PATH))

    try:
        await wait_until(is_gone, _REVOKE_LIMIT_S)
    except TimeoutError:
        raise Failed(
            "The credential is deleted here, but its machine is not reachable yet",
            hint="Polydev keeps trying; `polydev credential list` shows the credential until then",
        ) from None


def _row(credential: Json) -> tuple[str, ...]:
    status = "being revoked" if credential["revoking"] else credential["validity"] or "-"
    return (
        credential["credentialId"],
        credential["provider"],
        credential["kind"].replace("_", " "),
        credential["vmId"] or "-",
        status,
        moment(credential["expiresAt"]),
    )
