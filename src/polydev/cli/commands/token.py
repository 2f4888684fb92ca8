"""`polydev token`: your API tokens. `POLYDEV_TOKEN` makes commands use one."""

from __future__ import annotations

from typing import Annotated

import typer

from polydev.cli import options
from polydev.cli.client.api_client import ApiClient, Json, open_client
from polydev.cli.options import JsonFlag, runs
from polydev.cli.output.printer import Terminal, moment
from polydev.shared.domain import Scope
from polydev.shared.errors import Invalid, NoSuchToken

app = options.app("Manage your API tokens, which scripts use.")

_TOKENS = "/api/account/tokens"
_DAYS = 90


@app.command()
@runs
async def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the token.")],
    scopes: Annotated[
        list[Scope], typer.Option("--scope", "-s", help="Permission of the token; may be repeated.")
    ],
    days: Annotated[
        int, typer.Option(help="Validity in days; 0 means until it is revoked.", min=0)
    ] = _DAYS,
    as_json: JsonFlag = False,
) -> None:
    """Create a token and print it. Example: `polydev token create nightly -s read -s connect`."""
    terminal = Terminal(as_json=as_json)
    asked = {"name": name, "scopes": [it.value for it in scopes], "expiresInDays": days or None}
    async with open_client() as api:
        made = await api.post(_TOKENS, asked)
    if as_json:
        return terminal.answer(made)
    terminal.say(f"Token (shown only once): {made['token']}")


@app.command(name="list")
@runs
async def list_tokens(as_json: JsonFlag = False) -> None:
    """List your tokens. Example: `polydev token list`."""
    terminal = Terminal(as_json=as_json)
    async with open_client() as api:
        tokens = await api.list_all(_TOKENS)
    if as_json:
        return terminal.answer(tokens)
    if not tokens:
        return terminal.say("No tokens. Create one with `polydev token create`.")
    terminal.table(("token", "name", "scopes", "expires", "last used"), map(_row, tokens))


@app.command()
@runs
async def revoke(
    which: Annotated[
        str, typer.Argument(metavar="TOKEN", help="Id of a token, or its first characters.")
    ],
    as_json: JsonFlag = False,
) -> None:
    """Revoke a token. Example: `polydev token revoke 3f6c1d0e`."""
    terminal = Terminal(as_json=as_json)
    async with open_client() as api:
        found = await _resolve(api, which)
        await api.delete(f"{_TOKENS}/{found['tokenId']}")
    if as_json:
        terminal.answer({"tokenId": found["tokenId"], "revoked": True})
    else:
        terminal.say(f"{found['name']} ({found['tokenId']}) is revoked.")


async def _resolve(api: ApiClient, which: str) -> Json:
    """Find a token by the beginning of its id. Raises NoSuchToken, Invalid."""
    found = [it for it in await api.list_all(_TOKENS) if it["tokenId"].startswith(which)]
    if len(found) > 1:
        raise Invalid(f"{which} matches {len(found)} tokens", hint="Use more characters of the id")
    if not found:
        raise NoSuchToken(
            f"There is no API token {which}", hint="List the tokens with `polydev token list`"
        )
    return found[0]


def _row(token: Json) -> tuple[str, ...]:
    return (
        token["tokenId"],
        token["name"],
        " ".join(token["scopes"]),
        moment(token["expiresAt"], "never"),
        moment(token["lastUsedAt"], "never"),
    )
