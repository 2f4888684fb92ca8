"""`polydev chat`: chat with a CLI, in one turn or in a conversation."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from polydev.cli.client.api_client import ApiClient, Json, open_client
from polydev.cli.commands.conversation import Conversation
from polydev.cli.options import JsonFlag, provider_choices, runs
from polydev.cli.output.printer import Terminal, moment, printable
from polydev.shared.errors import ChatFailed, Invalid, NoSuchChat, by_code

_CHATS = "/api/chats"

_Which = Annotated[
    str,
    typer.Argument(
        metavar="PROVIDER|CHAT",
        help=f"{provider_choices()} starts a new chat; a chat's id, or its first characters, "
        "continues that chat; `list` lists your chats.",
    ),
]
_Text = Annotated[
    str | None,
    typer.Argument(
        metavar="TEXT",
        help="One message; `-` reads it from standard input. Without it: a conversation.",
    ),
]


@runs
async def chat(which: _Which, text: _Text = None, as_json: JsonFlag = False) -> None:
    """Chat with a connected CLI. Answers are printed as they arrive.

    In a conversation, the CLI asks for permissions. Ctrl-C stops the current answer; Ctrl-C or
    Ctrl-D at the prompt ends the conversation. Polydev keeps the chat, and you can continue it
    here or in the browser.

    Examples: `polydev chat codex`, `polydev chat list`, `polydev chat 4a0f4c5e`, `polydev chat
    codex "What is in this folder?"`, `git diff | polydev chat codex -`.
    """
    terminal = Terminal(as_json=as_json)
    message = sys.stdin.read() if text == "-" else text
    if message is not None and not message.strip():
        raise Invalid(
            "The message is empty", hint='Give a message, for example: polydev chat codex "Hello"'
        )
    async with open_client() as api:
        if which == "list" and message is None:
            return await _list(api, terminal)
        is_provider = which in {it["id"] for it in await api.get("/api/providers")}
        if message is None:
            return await _converse(api, which, terminal, is_new=is_provider)
        if not is_provider:
            chosen = await _resolve(api, which)
            return await Conversation(api, chosen, terminal).say(message)
        answer = await turn(api, which, message, terminal, quiet=as_json)
    if as_json:
        terminal.answer({"ok": True, "provider": which, "text": answer})


async def _converse(api: ApiClient, which: str, terminal: Terminal, *, is_new: bool) -> None:
    if terminal.as_json or not sys.stdin.isatty():
        raise Invalid(
            "A conversation needs a terminal", hint="Give a message, or `-` for standard input"
        )
    if is_new:
        chosen = await api.post(_CHATS, {"provider": which})
    else:
        chosen = await _resolve(api, which)
    await Conversation(api, chosen, terminal).go_on()


async def _list(api: ApiClient, terminal: Terminal) -> None:
    chats = await api.list_all(_CHATS)
    if terminal.as_json:
        return terminal.answer(chats)
    if not chats:
        return terminal.say("No chats. Start one with `polydev chat codex`.")
    rows = (
        (it["chatId"], it["provider"], it["status"], moment(it["updatedAt"]), it["title"] or "-")
        for it in chats
    )
    terminal.table(("chat", "provider", "status", "last used", "title"), rows)


async def _resolve(api: ApiClient, which: str) -> Json:
    """Find a chat by the beginning of its id. Raises NoSuchChat, Invalid."""
    found = [it for it in await api.list_all(_CHATS) if it["chatId"].startswith(which)]
    if len(found) > 1:
        raise Invalid(f"{which} matches {len(found)} chats", hint="Use more characters of the id")
    if not found:
        raise NoSuchChat(
            f"There is no provider or chat {which}",
            hint="List your chats with `polydev chat list`",
        )
    return found[0]


async def turn(api: ApiClient, provider: str, text: str, terminal: Terminal, *, quiet: bool) -> str:
    """Run one turn and return the whole answer; print it as it arrives unless `quiet`."""
    streamed = False
    async for event in api.lines("/api/chat/turn", {"provider": provider, "text": text}):
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
            case "notice" if not quiet:
                terminal.say(f"({event['text']}.)", "dim")
            case "error":
                raise by_code(event["code"])(event["message"], hint=event.get("hint") or "")
            case "end":
                if not event["ok"]:
                    break
                return str(event["text"])
    raise ChatFailed(
        "The turn ended without an answer", hint="Run `polydev doctor` to find the cause"
    )
