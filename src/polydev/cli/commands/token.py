"""`polydev token`: API tokens of whoever runs this, for scripts. POLYDEV_TOKEN takes one."""

from __future__ import annotations

from typing import Annotated

import typer

from polydev.cli import options
from polydev.cli.client.api_client import ApiClient, Json, open_client
from polydev.cli.options import JsonFlag, runs
from polydev.cli.output.printer import Terminal, moment
from polydev.shared.domain import Scope
from polydev.shared.errors import Invalid, NoSuchToken

app = options.app("API tokens, for scripts.")

_TOKENS = "/api/account/tokens"
_DAYS = 90


@app.command()
@runs
async def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is for.")],
    scopes: Annotated[
        list[Scope], typer.Option("--scope", "-s", help="What it may do; may be said again.")
    ],
    days: Annotated[
        int, typer.Option(help="How long it holds; 0: until it is revoked.", min=0)
    ] = _DAYS,
    as_json: JsonFlag = False,
) -> None:
    """Make a token, and print it. Example: `polydev token create nightly -s read -s connect`."""
    terminal = Terminal(as_json=as_json)
    asked = {"name": name, "scopes": [it.value for it in scopes], "expiresInDays": days or None}
    async with open_client() as api:
        made = await api.post(_TOKENS, asked)
    if as_json:
        return terminal.answer(made)
    terminal.say(f"The token, which is told this once: {made['token']}")


@app.command(name="list")
@runs
async def list_tokens(as_json: JsonFlag = False) -> None:
    """List the tokens. Example: `polydev token list`."""
    terminal = Terminal(as_json=as_json)
    async with open_client() as api:
        tokens = await api.list_all(_TOKENS)
    if as_json:
        return terminal.answer(tokens)
    if not tokens:
        return terminal.say("No tokens; `polydev token create` makes one.")
    terminal.table(("token", "name", "scopes", "until", "last used"), map(_row, tokens))


@app.command()
@runs
async def revoke(
    which: Annotated[str, typer.Argument(metavar="TOKEN", help="A token's id or its beginning.")],
    as_json: JsonFlag = False,
) -> None:
    """Revoke a token: it opens nothing from now on. Example: `polydev token revoke 3f6c1d0e`."""
    terminal = Terminal(as_json=as_json)
    async with open_client() as api:
        found = await _resolve(api, which)
        await api.delete(f"{_TOKENS}/{found['tokenId']}")
    if as_json:
        terminal.answer({"tokenId": found["tokenId"], "revoked": True})
    else:
        terminal.say(f"{found['name']} ({found['tokenId']}) is revoked.")


async def _resolve(api: ApiClient, which: str) -> Json:
    """The token that is meant. Raises NoSuchToken, Invalid."""
    found = [it for it in await api.list_all(_TOKENS) if it["tokenId"].startswith(which)]
    if len(found) > 1:
        raise Invalid(f"{which} is the beginning of {len(found)} tokens", hint="Say more of it")
    if not found:
        raise NoSuchToken(
            f"There is no API token {which}", hint="`polydev token list` tells those there are"
        )
    return found[0]


def _row(token: Json) -> tuple[str, ...]:
    return (
        token["tokenId"],
        token["name"],
        " ".join(token["scopes"]),
        moment(token["expiresAt"], "it is revoked"),
        moment(token["lastUsedAt"], "never"),
    )
