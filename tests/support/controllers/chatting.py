"""Chat client over the API of a controller under test."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import httpx
from controller_process import ControllerProcess

Event = dict[str, Any]
LIMIT_S = 60


async def connect_cli(controller: ControllerProcess, provider: str) -> str:
    """Connect a CLI with a simulated login; the CLI machine's id."""
    session_id = await controller.connect(provider)
    path = f"/api/auth/session/{session_id}"
    session = await controller.call("GET", path)
    while session["endedAt"] is None:
        after = f"{path}?after={session['version']}&wait=20"
        session = await controller.call("GET", after)
    assert session["status"] == "completed", session
    return str(session["cliVM"]["vmId"])


async def create_chat(controller: ControllerProcess, provider: str = "codex") -> ChatClient:
    """Create a chat with a CLI."""
    chat = await controller.call("POST", "/api/chats", {"provider": provider})
    return ChatClient(controller, str(chat["chatId"]))


@dataclass(frozen=True)
class ChatClient:
    """One chat."""

    controller: ControllerProcess
    chat_id: str

    @property
    def path(self) -> str:
        return f"/api/chats/{self.chat_id}"

    def on_controller(self, controller: ControllerProcess) -> ChatClient:
        """The same chat on another controller."""
        return ChatClient(controller, self.chat_id)

    async def view(self) -> dict[str, Any]:
        return dict(await self.controller.call("GET", self.path))

    async def send(self, text: str) -> int:
        """Send a message; the turn's number."""
        taken = await self.controller.call("POST", f"{self.path}/turns", {"text": text})
        return int(taken["turn"])

    async def allow(self, event: Event, kind: str = "allow_once") -> None:
        """Answer a permission request with the option of a kind."""
        [option] = [it["optionId"] for it in event["options"] if it["optionKind"] == kind]
        path = f"{self.path}/permissions/{event['requestId']}"
        await self.controller.call("POST", path, {"optionId": option})

    async def stream(self, after: int = 0) -> AsyncGenerator[Event]:
        """Stream events after an id, checking that their ids grow."""
        headers = {"last-event-id": str(after)} if after else {}
        async with (
            self.controller.client() as client,
            client.stream("GET", f"{self.path}/stream", headers=headers) as answer,
        ):
            assert answer.status_code == 200, await answer.aread()
            known = after
            async for line in _lines(answer):
                if line.startswith("id: "):
                    assert int(line[4:]) > known, (known, line)
                    known = int(line[4:])
                elif line.startswith("data: "):
                    event = json.loads(line[6:])
                    assert event["id"] == known
                    yield event

    async def wait_for(self, kind: str, turn: int, after: int = 0) -> list[Event]:
        """The events up to the first one of a kind in a turn."""
        received: list[Event] = []
        async with asyncio.timeout(LIMIT_S), aclosing(self.stream(after)) as events:
            async for event in events:
                received.append(event)
                if event["kind"] == kind and event["turn"] == turn:
                    return received
        raise AssertionError(f"the stream ended before {kind}: {received}")

    async def run_turn(self, text: str, allow: str = "allow_once") -> list[Event]:
        """Run a turn, answering all permission requests; its events."""
        number = await self.send(text)
        received: list[Event] = []
        async with asyncio.timeout(LIMIT_S), aclosing(self.stream(number * 10**6)) as events:
            async for event in events:
                received.append(event)
                if event["kind"] == "permission":
                    await self.allow(event, allow)
                if event["kind"] == "turn_ended":
                    return received
        raise AssertionError("the stream ended")

    async def stored_events(self) -> list[Event]:
        """Load all stored events, page by page."""
        found: list[Event] = []
        while True:
            after = found[-1]["id"] if found else 0
            page = await self.controller.call("GET", f"{self.path}/events?after={after}&limit=7")
            if not page:
                return found
            found += page


async def _lines(answer: httpx.Response) -> AsyncIterator[str]:
    try:
        async for line in answer.aiter_lines():
            yield line
    except httpx.HTTPError:
        return  # the controller was killed


def joined_text(events: list[Event], kind: str = "text") -> str:
    """Join the text of all events of a kind."""
    return "".join(it["text"] for it in events if it["kind"] == kind)


def kinds(events: list[Event]) -> list[str]:
    """The events' kinds in order, without consecutive duplicates."""
    found: list[str] = []
    for event in events:
        if not found or found[-1] != event["kind"]:
            found.append(event["kind"])
    return found
