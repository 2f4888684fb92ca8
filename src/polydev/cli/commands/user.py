"""`polydev user`: who may come in. For administrators."""

from __future__ import annotations

from typing import Annotated

import typer

from polydev.cli import options
from polydev.cli.client.api_client import ApiClient, Json, open_client
from polydev.cli.client.poll import until
from polydev.cli.options import JsonFlag, runs
from polydev.cli.output.confirm import require_confirmation
from polydev.cli.output.printer import Terminal, moment
from polydev.shared.domain import Role
from polydev.shared.errors import Failed, Invalid, NoSuchUser

app = options.app("People: who may come in.")

_USERS = "/api/admin/people"
_DELETE_LIMIT_S = 300.0

Who = Annotated[
    str, typer.Argument(metavar="PERSON", help="An e-mail address, or an id or its beginning.")
]


@app.command(name="list")
@runs
async def list_people(as_json: JsonFlag = False) -> None:
    """List the people. Example: `polydev user list`."""
    terminal = Terminal(as_json=as_json)
    async with open_client() as api:
        users = await api.list_all(_USERS)
    if as_json:
        return terminal.answer(users)
    columns = ("person", "e-mail", "role", "state", "since")
    terminal.table(columns, (_row(user) for user in users))


@app.command()
@runs
async def invite(
    email: Annotated[
        str | None,
        typer.Argument(metavar="E-MAIL", help="Whom; without one, whoever has the code."),
    ] = None,
    role: Annotated[Role, typer.Option(help="What they will be.")] = Role.USER,
    days: Annotated[int, typer.Option(min=1, help="How long it holds.")] = 7,
    as_json: JsonFlag = False,
) -> None:
    """Make an invitation, and print its code. Example: `polydev user invite ann@example.org`."""
    terminal = Terminal(as_json=as_json)
    asked = {"email": email, "role": role.value, "expiresInDays": days}
    async with open_client() as api:
        made = await api.post("/api/admin/invitations", asked)
    if as_json:
        return terminal.answer(made)
    terminal.say(f"The code, which is told this once: {made['code']}")
    terminal.say(
        f"It is for {made['email'] or 'whoever has it'}, until {moment(made['expiresAt'])}."
    )


@app.command()
@runs
async def disable(who: Who, as_json: JsonFlag = False) -> None:
    """Shut somebody out; their things stay. Example: `polydev user disable ann@example.org`."""
    await _change(who, "disable", None, as_json=as_json)


@app.command()
@runs
async def enable(who: Who, as_json: JsonFlag = False) -> None:
    """Let somebody in again. Example: `polydev user enable ann@example.org`."""
    await _change(who, "enable", None, as_json=as_json)


@app.command()
@runs
async def role(
    who: Who,
    role: Annotated[Role, typer.Argument(metavar="ROLE", help="What they are from now on.")],
    as_json: JsonFlag = False,
) -> None:
    """Say what somebody is. Example: `polydev user role ann@example.org administrator`."""
    await _change(who, "role", {"role": role.value}, as_json=as_json)


@app.command()
@runs
async def password(who: Who, as_json: JsonFlag = False) -> None:
    """Give somebody a made-up password in place of a lost one, and print it.

    Example: `polydev user password admin@localhost`, which opens the page to who runs Polydev.
    """
    terminal = Terminal(as_json=as_json)
    async with open_client() as api:
        user = await _resolve(api, who)
        made = await api.post(f"{_USERS}/{user['id']}/password")
    if as_json:
        return terminal.answer(made)
    terminal.say(f"The new password, which is told this once: {made['password']}")
    terminal.say(f"Sign in with it as {made['email']}, and change it under Settings.")


@app.command()
@runs
async def delete(
    who: Who,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Remove somebody with machines, credentials and all else.

    Example: `polydev user delete ann@example.org`.
    """
    terminal = Terminal(as_json=as_json)
    async with open_client() as api:
        user = await _resolve(api, who)
        await require_confirmation(
            f"Remove {user['email']} with all machines, credentials and sessions?", yes=yes
        )
        async with terminal.step(f"Removing {user['email']}"):
            await api.delete(f"{_USERS}/{user['id']}")
            await _until_gone(api, user["id"])
    if as_json:
        terminal.answer({"id": user["id"], "deleted": True})


async def _change(who: str, verb: str, body: Json | None, *, as_json: bool) -> None:
    terminal = Terminal(as_json=as_json)
    async with open_client() as api:
        user = await _resolve(api, who)
        changed = await api.post(f"{_USERS}/{user['id']}/{verb}", body)
    if as_json:
        return terminal.answer(changed)
    terminal.say(f"{changed['email']}: {changed['role']}, {_state(changed)}")


async def _resolve(api: ApiClient, who: str) -> Json:
    """The person that is meant. Raises NoSuchPerson, Invalid."""
    users = await api.list_all(_USERS)
    found = [it for it in users if who.casefold() == it["email"] or who == it["id"]]
    found = found or [it for it in users if it["id"].startswith(who)]
    if len(found) > 1:
        raise Invalid(f"{who} is the beginning of {len(found)} people's ids", hint="Say more of it")
    if not found:
        raise NoSuchUser(f"There is no {who}", hint="`polydev user list` tells who is there")
    return found[0]


async def _until_gone(api: ApiClient, user_id: str) -> None:
    async def is_gone() -> bool:
        return all(it["id"] != user_id for it in await api.list_all(_USERS))

    try:
        await until(is_gone, _DELETE_LIMIT_S)
    except TimeoutError:
        raise Failed(
            "Nobody comes in as them any more, but not everything of theirs is gone yet",
            hint="It goes on by itself; `polydev user list` shows them until it is done",
        ) from None


def _row(user: Json) -> tuple[str, ...]:
    return (
        user["id"],
        user["email"],
        user["role"],
        _state(user),
        moment(user["createdAt"]),
    )


def _state(user: Json) -> str:
    if user["deletingAt"]:
        return "being removed"
    return "disabled" if user["disabledAt"] else "active"
