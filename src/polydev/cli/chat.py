"""`polydev chat <provider> "…"`: one turn with the CLI in the person's CLI machine, streamed."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from polydev.cli.controller import Controller, controller
from polydev.cli.options import JsonFlag, runs
from polydev.cli.terminal import Terminal, printable
from polydev.errors import ChatFailed, Invalid, by_code


@runs
async def chat(
    provider: Annotated[str, typer.Argument(metavar="PROVIDER", help="`codex` or `claude_code`.")],
    text: Annotated[
        str, typer.Argument(metavar="TEXT", help="What to say; `-` reads it from standard input.")
    ],
    as_json: JsonFlag = False,
) -> None:
    """Say something to a CLI that is logged in; its answer is printed as it comes.

    Examples: `polydev chat codex "What is in this folder?"`, `git diff | polydev chat codex -`.
    """
    terminal = Terminal(as_json=as_json)
    words = sys.stdin.read() if text == "-" else text
    if not words.strip():
        raise Invalid("There is nothing to say", hint='Give a text: polydev chat codex "Hello"')
    async with controller() as there:
        answer = await turn(there, provider, words, terminal, quiet=as_json)
    if as_json:
        terminal.answer({"ok": True, "provider": provider, "text": answer})


async def turn(
    there: Controller, provider: str, text: str, terminal: Terminal, *, quiet: bool
) -> str:
    """Take one turn and return the whole answer; unless `quiet`, print it as it comes."""
    streamed = False
    async for event in there.lines("/api/chat/turn", {"provider": provider, "text": text}):
        match event["type"]:
            case "delta":
                streamed = True
                if not quiet:
                    terminal.piece(event["text"])
            case "text":
                if not quiet:
                    terminal.piece("\n" if streamed else event["text"] + "\n")
                streamed = False
            case "tool" if not quiet:
                terminal.say(f"[{printable(event['name'])}]", "dim")
            case "error":
                raise by_code(event["code"])(event["message"], hint=event.get("hint") or "")
            case "end":
                if not event["ok"]:
                    break
                return str(event["text"])
    raise ChatFailed("The turn ended without an answer", hint="`polydev doctor` may know why")
