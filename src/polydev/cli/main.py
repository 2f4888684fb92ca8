"""Command line of all commands. Errors end it with one line and an exit code."""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Annotated

import typer

from polydev import __version__
from polydev.cli import doctor, options
from polydev.cli.commands import (
    audit,
    chat,
    connect,
    credential,
    host,
    key,
    machine,
    token,
    user,
)
from polydev.cli.commands.instance import db, demo, down, image, openapi, up
from polydev.cli.output.printer import printable
from polydev.shared.errors import PolydevError

FAILED = 1
BROKEN_PIPE = 141

app = options.app("Run AI coding CLIs in private microVMs, one per user, and log them in there.")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"polydev {__version__}")
        raise typer.Exit


@app.callback()
def _polydev(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


app.command(name="up")(up.up)
app.command(name="down")(down.down)
app.command(name="connect")(connect.connect)
app.command(name="chat")(chat.chat)
app.add_typer(machine.app, name="machine")
app.add_typer(image.app, name="image")
app.add_typer(credential.app, name="credential")
app.add_typer(user.app, name="user")
app.add_typer(host.app, name="host")
app.add_typer(token.app, name="token")
app.add_typer(key.app, name="key")
app.add_typer(db.app, name="db")
app.command(name="audit")(audit.audit)
app.command(name="doctor")(doctor.doctor)
app.command(name="openapi")(openapi.openapi)
app.command(name="demo")(demo.demo)


def run() -> None:
    """Run the command line and exit."""
    try:
        app(prog_name="polydev")
    except PolydevError as error:
        _end(error.line(), error, error.code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(BROKEN_PIPE)
    except Exception as error:
        summary = f"{type(error).__name__}: {error}".splitlines()[0]
        message = f"Unexpected error: {summary}. Set POLYDEV_DEBUG=1 to see the traceback"
        _end(message, error, "defect")


def _end(line: str, error: Exception, code: str) -> None:
    if os.environ.get("POLYDEV_DEBUG"):
        traceback.print_exception(error)
    if "--json" in sys.argv[1:]:
        problem = {"code": code, "message": getattr(error, "message", line)}
        hint = getattr(error, "hint", "")
        print(json.dumps({"ok": False, "error": problem | {"hint": hint}}), flush=True)
    print(f"polydev: {printable(line)}", file=sys.stderr)
    sys.exit(FAILED)
