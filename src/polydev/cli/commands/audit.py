"""`polydev audit`: the audit log."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from polydev.cli.client.api_client import ApiClient, Json, open_client
from polydev.cli.options import JsonFlag, runs
from polydev.cli.output.printer import Terminal, moment
from polydev.shared.errors import ControllerUnreachable, Invalid

_ALL, _MINE = "/api/admin/audit", "/api/account/audit"
_OF_ALL = frozenset({"actor", "owner"})
_FILTERS = frozenset({"subject", "action"}) | _OF_ALL
_LOOK_EVERY_S = 1.0
_OVERLAP = 500
"""Number of newest entries to read again when following: entries may not appear in id order."""
_COLUMNS = ("at", "actor", "action", "subject", "owner", "via", "source", "reason")

_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


@runs
async def audit(
    about: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME=VALUE",
            help="Filter by `actor=`, `owner=` or `subject=` (ids) or by `action=machine.destroy`. "
            "`action=machine.` matches every action on machines.",
        ),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(help="Show entries since `30m`, `12h` or `7d` ago, or since a time."),
    ] = None,
    last: Annotated[int, typer.Option(min=1, max=500, help="Maximum number of entries.")] = 50,
    mine: Annotated[
        bool,
        typer.Option("--mine", help="Show only your own actions, and actions on what you own."),
    ] = False,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print new entries as they arrive.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show the audit log, newest last. Example: `polydev audit action=machine. --since 1d`."""
    wanted = _wanted(about or [], _FILTERS - _OF_ALL if mine else _FILTERS)
    if since is not None:
        wanted["since"] = _time(since)
    terminal = Terminal(as_json=as_json)
    path = _MINE if mine else _ALL
    async with open_client() as api:
        if follow:
            return await _follow(api, terminal, path, wanted, last)
        entries = list(reversed(await api.get(path, **wanted, limit=last)))
    if as_json:
        terminal.answer(entries)
    elif entries:
        terminal.table(_COLUMNS, [_row(entry) for entry in entries])
    else:
        terminal.say("No matching entries.")


async def _follow(api: ApiClient, terminal: Terminal, path: str, wanted: Json, last: int) -> None:
    """Print the last entries, then new ones. Waits while the controller is down."""
    known: set[int] | None = None
    while True:
        try:
            newest = await api.get(path, **wanted, limit=_OVERLAP)
        except ControllerUnreachable:
            if known is None:
                raise
        else:
            new = newest[:last] if known is None else newest
            for entry in reversed(new):
                if known is None or entry["entryId"] not in known:
                    _print(terminal, entry)
            known = {it["entryId"] for it in newest}
        await asyncio.sleep(_LOOK_EVERY_S)


def _print(terminal: Terminal, entry: Json) -> None:
    if terminal.as_json:
        terminal.answer(entry)
    else:
        terminal.say("  ".join(cell for cell in _row(entry) if cell != "-"))


def _row(entry: Json) -> list[str]:
    return [moment(entry["at"]), *(str(entry[name] or "-") for name in _COLUMNS[1:])]


def _wanted(about: list[str], names: frozenset[str]) -> Json:
    """Raises Invalid."""
    pairs = [it.partition("=") for it in about]
    for name, sign, _ in pairs:
        if name not in names or not sign:
            raise Invalid(
                f"{name} is not a filter",
                hint=f"Use NAME=VALUE with one of: {', '.join(sorted(names))}",
            )
    return {name: value for name, _, value in pairs}


def _time(text: str) -> str:
    """Parse a time or an age; returns it as the API expects. Raises Invalid."""
    unit = _UNITS.get(text[-1:])
    try:
        if unit and text[:-1].isdecimal():
            ago: timedelta = timedelta(**{unit: int(text[:-1])})
            return (datetime.now(UTC) - ago).isoformat()
        at = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise Invalid(
            f"--since {json.dumps(text)} is not a time", hint="Use 30m, 12h, 7d or 2026-01-31T12:00"
        ) from None
    return (at if at.tzinfo else at.astimezone()).isoformat()
