"""`polydev user`: user accounts. For administrators."""

from __future__ import annotations

from typing import Annotated

import typer

from polydev.cli import options
from polydev.cli.client.api_client import ApiClient, Json, open_client
from polydev.cli.client.poll import wait_until
from polydev.cli.options import JsonFlag, runs
from polydev.cli.output.confirm import require_confirmation
from polydev.cli.output.printer import Terminal, moment
from polydev.shared.domain import Role
from polydev.shared.errors import Failed, Invalid, NoSuchUser

app = options.app("Manage user accounts.")

_USERS = "/api/admin/people"
_DELETE_LIMIT_S = 300.0

Who = Annotated[
    str,
    typer.Argument(
        metavar="USER", help="E-mail address or id of a user, or the first characters of the id."
    ),
]


@app.command(name="list")
@runs
async def list_users(as_json: JsonFlag = False) -> None:
    """List the users. Example: `polydev user list`."""
    terminal = Terminal(as_json=as_json)
    async with open_client() as api:
        users = await api.list_all(_USERS)
    if as_json:
        return terminal.answer(users)
    columns = ("user", "e-mail", "role", "state", "since")
    terminal.table(columns, (_row(user) for user in users))


@app.command()
@runs
async def invite(
    email: Annotated[
        str | None,
        typer.Argument(
            metavar="E-MAIL", help="Address to invite; without it, the code works for anyone."
        ),
    ] = None,
    role: Annotated[Role, typer.Option(help="Role of the new user.")] = Role.USER,
    days: Annotated[int, typer.Option(min=1, help="Validity in days.")] = 7,
    as_json: JsonFlag = False,
) -> None:
    """Create an invitation and print its code. Example: `polydev user invite ann@example.org`."""
    terminal = Terminal(as_json=as_json)
    asked = {"email": email, "role": role.value, "expiresInDays": days}
    async with open_client() as api:
        made = await api.post("/api/admin/invitations", asked)
    if as_json:
        return terminal.answer(made)
    terminal.say(f"Code (shown only once): {made['code']}")
    terminal.say(f"It is valid for {made['email'] or 'anyone'} until {moment(made['expiresAt'])}.")


@app.command()
@runs
async def disable(who: Who, as_json: JsonFlag = False) -> None:
    """Disable a user and keep their data. Example: `polydev user disable ann@example.org`."""
    await _change(who, "disable", None, as_json=as_json)


@app.command()
@runs
async def enable(who: Who, as_json: JsonFlag = False) -> None:
    """Enable a disabled user. Example: `polydev user enable ann@example.org`."""
    await _change(who, "enable", None, as_json=as_json)


@app.command()
@runs
async def role(
    who: Who,
    role: Annotated[Role, typer.Argument(metavar="ROLE", help="New role.")],
    as_json: JsonFlag = False,
) -> None:
    """Change a user's role. Example: `polydev user role ann@example.org administrator`."""
    await _change(who, "role", {"role": role.value}, as_json=as_json)


@app.command()
@runs
async def password(who: Who, as_json: JsonFlag = False) -> None:
    """Reset a user's password and print the new one.

    Example: `polydev user password admin@localhost`, for the local administrator.
    """
    terminal = Terminal(as_json=as_json)
    async with open_client() as api:
        user = await _resolve(api, who)
        made = await api.post(f"{_USERS}/{user['id']}/password")
    if as_json:
        return terminal.answer(made)
    terminal.say(f"New password (shown only once): {made['password']}")
    terminal.say(f"Sign in as {made['email']} and change it under Settings.")


@app.command()
@runs
async def delete(
    who: Who,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Delete a user with all machines, credentials and other data.

    Example: `polydev user delete ann@example.org`.
    """
    terminal = Terminal(as_json=as_json)
    async with open_client() as api:
        user = await _resolve(api, who)
        await require_confirmation(
            f"Delete {user['email']} with all machines, credentials and sessions?", yes=yes
        )
        async with terminal.step(f"Deleting {user['email']}"):
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
    """Find a user by e-mail address or id. Raises NoSuchUser, Invalid."""
    users = await api.list_all(_USERS)
    found = [it for it in users if who.casefold() == it["email"] or who == it["id"]]
    found = found or [it for it in users if it["id"].startswith(who)]
    if len(found) > 1:
        raise Invalid(f"{who} matches {len(found)} users", hint="Use more characters of the id")
    if not found:
        raise NoSuchUser(f"There is no user {who}", hint="List the users with `polydev user list`")
    return found[0]


async def _until_gone(api: ApiClient, user_id: str) -> None:
    async def is_gone() -> bool:
        return all(it["id"] != user_id for it in await api.list_all(_USERS))

    try:
        await wait_until(is_gone, _DELETE_LIMIT_S)
    except TimeoutError:
        raise Failed(
            "The user can no longer sign in, but some of their data is not deleted yet",
            hint="Polydev keeps trying; `polydev user list` shows the user until then",
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
        return "being deleted"
    return "disabled" if user["disabledAt"] else "active"
