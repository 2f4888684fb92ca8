"""A chat as a conversation in a terminal.

Everything shown comes from the chat's events, so a conversation can move between the terminal and
the browser. Text from machines is sanitized before it is printed. Ctrl-C stops a turn; at the
prompt it ends the conversation, but not the chat.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from polydev.cli.client.api_client import ApiClient, Json
from polydev.cli.output.printer import Terminal
from polydev.shared.errors import ChatFailed, PolydevError, by_code

_LONGEST_LINE = 65536
_AGAIN_S = 1.0
_SHOWN_LINES = 12
"""Maximum number of lines of a tool's output."""
_LAST_TURNS = 3
_EVENTS_A_TURN = 1_000_000


class Keys:
    """Typed lines and Ctrl-C during a conversation."""

    def __init__(self) -> None:
        self._lines: asyncio.Queue[str | None] = asyncio.Queue()

    @contextmanager
    def read(self) -> Iterator[None]:
        """Read the terminal until the block ends."""
        loop, stdin = asyncio.get_running_loop(), sys.stdin.fileno()
        loop.add_reader(stdin, self._typed)
        loop.add_signal_handler(signal.SIGINT, self._lines.put_nowait, None)
        try:
            yield
        finally:
            loop.remove_reader(stdin)
            loop.remove_signal_handler(signal.SIGINT)

    async def line(self) -> str | None:
        """Next typed line; None for Ctrl-C and for the end of the input."""
        line = await self._lines.get()
        return None if line is None else line.strip()

    def _typed(self) -> None:
        line = sys.stdin.readline(_LONGEST_LINE)
        self._lines.put_nowait(line or None)


class Conversation:
    """One chat, shown in a terminal."""

    def __init__(self, api: ApiClient, chat: Json, terminal: Terminal) -> None:
        self._api = api
        self._chat = chat
        self._terminal = terminal
        self._known = max(chat["turn"] - _LAST_TURNS, 0) * _EVENTS_A_TURN
        self._in_text = False
        self._tools: dict[str, str] = {}

    @property
    def _path(self) -> str:
        return f"/api/chats/{self._chat['chatId']}"

    async def go_on(self) -> None:
        """Run turns until the user ends the conversation."""
        keys = Keys()
        with keys.read():
            if self._chat["turn"]:
                await self._catch_up(keys)
            while True:
                self._terminal.piece("\n> ")
                text = await keys.line()
                if text is None:
                    break
                if text:
                    await self._turn(text, keys)
        if self._chat["turn"]:
            self._terminal.say(f"\nContinue with: polydev chat {self._chat['chatId']}", "dim")
        else:  # the user sent no message
            await self._api.delete(self._path)

    async def say(self, text: str) -> None:
        """Run one turn without a terminal. Raises ChatFailed or the turn's error."""
        await self._ask(text)
        ended = await self._follow(None, shows_question=False)
        if error := ended["error"]:
            raise by_code(error["code"])(error["message"], hint=error.get("hint") or "")
        if ended["reason"] != "end_turn":
            raise ChatFailed(f"The turn ended: {ended['reason']}")

    async def _catch_up(self, keys: Keys) -> None:
        """Show the last turns, and follow a running turn to its end."""
        if self._chat["status"] != "idle":
            await self._follow(keys, shows_question=True)
            return
        while found := await self._api.get(f"{self._path}/events", after=self._known):
            for event in found:
                self._known = event["id"]
                self._show(event, shows_question=True)

    async def _turn(self, text: str, keys: Keys) -> None:
        try:
            await self._ask(text)
            ended = await self._follow(keys, shows_question=False)
        except PolydevError as error:
            self._terminal.say(error.line(), "yellow")
            return
        if ended["error"]:
            message = f"{ended['error']['message']}. {ended['error'].get('hint') or ''}"
            self._terminal.say(message.strip(), "yellow")

    async def _ask(self, text: str) -> None:
        taken = await self._api.post(f"{self._path}/turns", {"text": text})
        self._chat["turn"] = taken["turn"]

    async def _follow(self, keys: Keys | None, *, shows_question: bool) -> Json:
        """Show events until the current turn ends; returns its last event."""
        stopping = None if keys is None else asyncio.create_task(self._stop_on_ctrl_c(keys))
        try:
            while True:
                async for event in self._api.stream(f"{self._path}/stream", after=self._known):
                    self._known = event["id"]
                    self._show(event, shows_question=shows_question)
                    if event["kind"] == "permission" and keys is not None:
                        stopping = await self._answer_permission(event, keys, stopping)
                    if event["kind"] == "turn_ended" and event["turn"] == self._chat["turn"]:
                        return event
                await asyncio.sleep(_AGAIN_S)  # the controller ended the stream
        finally:
            if stopping is not None:
                stopping.cancel()

    async def _stop_on_ctrl_c(self, keys: Keys) -> None:
        while await keys.line() is not None:
            self._terminal.say("(The CLI is still working. Ctrl-C stops it.)", "dim")
        self._terminal.say("\nStopping.", "dim")
        await self._api.post(f"{self._path}/stop")

    async def _answer_permission(
        self, event: Json, keys: Keys, stopping: asyncio.Task[None] | None
    ) -> asyncio.Task[None]:
        """Ask the user for a permission, which another window may answer first."""
        if stopping is not None:
            stopping.cancel()
        options = event["options"]
        for number, option in enumerate(options, start=1):
            self._terminal.say(f"  {number}  {option['name']}")
        chosen = None
        while chosen is None:
            self._terminal.piece(f"Choose 1 to {len(options)}, or press Ctrl-C to stop: ")
            text = await keys.line()
            if text is None:
                await self._api.post(f"{self._path}/stop")
                break
            if text.isdecimal() and 1 <= int(text) <= len(options):
                chosen = options[int(text) - 1]["optionId"]
        if chosen is not None:
            path = f"{self._path}/permissions/{event['requestId']}"
            try:
                await self._api.post(path, {"optionId": chosen})
            except PolydevError as error:  # answered elsewhere, or the turn has ended
                self._terminal.say(error.line(), "yellow")
        return asyncio.create_task(self._stop_on_ctrl_c(keys))

    # -- display ---------------------------------------------------------------------------------

    def _show(self, event: Json, *, shows_question: bool) -> None:
        kind = event["kind"]
        if kind == "text":
            self._terminal.piece(event["text"])
            self._in_text = True
            return
        if self._in_text:
            self._terminal.say()
            self._in_text = False
        match kind:
            case "user" if shows_question:
                self._terminal.say(f"\n> {event['text']}", "bold")
            case "tool":
                self._show_tool(event)
            case "plan":
                for entry in event["entries"]:
                    self._terminal.say(f"  {entry['status']:<12} {entry['content']}", "dim")
            case "permission":
                self._terminal.say(f"Permission needed: {event['title']}", "bold")
                self._show_content(event["content"])
            case "notice":
                self._terminal.say(event["text"], "yellow")
            case "turn_ended" if event["reason"] not in ("end_turn", "failed"):
                self._terminal.say(f"(The turn ended: {event['reason']}.)", "dim")

    def _show_tool(self, event: Json) -> None:
        which = event["toolCallId"]
        title = event.get("title") or self._tools.get(which, "")
        is_new, self._tools[which] = which not in self._tools, title
        status = event.get("status")
        if is_new and title:
            self._terminal.say(f"[{title}]", "dim")
        if status in ("completed", "failed"):
            if status == "failed":
                self._terminal.say(f"[{title}: failed]", "yellow")
            self._show_content(event.get("content") or [])

    def _show_content(self, content: list[Json]) -> None:
        for part in content:
            if part["type"] == "diff":
                self._terminal.say(f"    changes {part['path']}", "dim")
                continue
            lines = str(part.get("text", "")).strip().splitlines()
            for line in lines[:_SHOWN_LINES]:
                self._terminal.say(f"    {line}", "dim")
            if len(lines) > _SHOWN_LINES:
                self._terminal.say(f"    … {len(lines) - _SHOWN_LINES} more lines", "dim")
