"""Commands in a real terminal: hidden key prompts and conversations."""

from __future__ import annotations

import asyncio
import os
import pty
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
from controller_world import LIMIT_S, World

KEY = "standin-key-typed-0123456789abcdef"


class TerminalSession:
    """A command in its own terminal, with the user's view and input."""

    def __init__(self, process: asyncio.subprocess.Process, terminal: int) -> None:
        self.process = process
        self._terminal = terminal
        self.seen = ""
        self._read_to = 0
        self._more = asyncio.Event()

    def look(self) -> None:
        try:
            self.seen += os.read(self._terminal, 65536).decode(errors="replace")
        except OSError:  # the other end is closed
            asyncio.get_running_loop().remove_reader(self._terminal)
        self._more.set()

    async def until(self, text: str) -> None:
        """Wait until a text appears after the previous one."""
        try:
            async with asyncio.timeout(LIMIT_S):
                while text not in self.seen[self._read_to :]:
                    self._more.clear()
                    await self._more.wait()
        except TimeoutError:
            raise AssertionError(f"{text!r} is not shown after: {self.seen}") from None
        self._read_to = self.seen.index(text, self._read_to) + len(text)

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    async def ended(self) -> int:
        return await asyncio.wait_for(self.process.wait(), LIMIT_S)


@contextmanager
def _terminal() -> Iterator[tuple[int, int]]:
    ours, theirs = pty.openpty()
    try:
        yield ours, theirs
    finally:
        os.close(ours)


def _environment(world: World) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "POLYDEV_URL": f"http://127.0.0.1:{world.controller.port}",
        "POLYDEV_ADMIN_TOKEN": world.controller.env["POLYDEV_ADMIN_TOKEN"],
        "TERM": "dumb",
        "COLUMNS": "200",
    }


@asynccontextmanager
async def polydev(world: World, *arguments: str) -> AsyncIterator[TerminalSession]:
    with _terminal() as (ours, theirs):
        process = await asyncio.create_subprocess_exec(
            *("setsid", "--ctty", sys.executable, "-P", "-m", "polydev.cli", *arguments),
            env=_environment(world),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        it = TerminalSession(process, ours)
        asyncio.get_running_loop().add_reader(ours, it.look)
        try:
            yield it
        finally:
            asyncio.get_running_loop().remove_reader(ours)
            if process.returncode is None:
                process.kill()
            await process.wait()


@pytest.fixture
async def started_world(world: World) -> World:
    await world.controller.start()
    await world.controller.call("GET", "/health")
    return world


async def test_key_prompt_does_not_echo(started_world: World) -> None:
    async with polydev(started_world, "connect", "codex", "--api-key") as it:
        await it.until("API key for codex:")
        it.type(f"{KEY}\n")
        await it.until("codex is logged in")
        assert await it.ended() == 0
    assert KEY not in it.seen
    (listed,) = await started_world.controller.call("GET", "/api/credentials")
    assert listed["kind"] == "api_key"
    stored = await started_world.credentials(listed["vmId"], "codex")
    assert stored["OPENAI_API_KEY"] == KEY


async def test_key_is_read_from_standard_input(started_world: World) -> None:
    for given, code, output in ((f"{KEY}\n", 0, b"is logged in"), ("", 1, b"The API key is empty")):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "polydev.cli", "connect", "codex", "--api-key-stdin"),
            env=_environment(started_world),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await asyncio.wait_for(process.communicate(given.encode()), LIMIT_S)
        assert (process.returncode, output in out) == (code, True), out.decode()
        assert KEY.encode() not in out


async def test_conversation_continues_later(started_world: World) -> None:
    asked = {"provider": "codex", "apiKey": KEY}
    started = await started_world.controller.call("POST", "/api/auth/key", asked)
    await started_world.controller.wait_for_session(started["sessionId"])
    async with polydev(started_world, "chat", "codex") as it:
        await it.until("> ")
        it.type("Hello there\n")
        await it.until("Hello there")  # echoed input
        await it.until("Hello there")  # the response
        await it.until("> ")
        it.type("\x04")
        await it.until("Continue with: polydev chat ")
        assert await it.ended() == 0
    (chat,) = await started_world.controller.call("GET", "/api/chats")
    async with polydev(started_world, "chat", "list") as it:
        await it.until(chat["chatId"])
        assert await it.ended() == 0
    async with polydev(started_world, "chat", chat["chatId"][:8]) as it:
        await it.until("> Hello there")  # the earlier conversation
        await it.until("\n> ")
        it.type("\x03")
        assert await it.ended() == 0


async def test_user_answers_permissions_and_stops_a_turn(started_world: World) -> None:
    started = await started_world.controller.call(
        "POST", "/api/auth/key", {"provider": "codex", "apiKey": KEY}
    )
    await started_world.controller.wait_for_session(started["sessionId"])
    async with polydev(started_world, "chat", "codex") as it:
        await it.until("> ")
        it.type("write notes.txt: by hand\n")
        await it.until("Permission needed: ")
        await it.until("1  ")
        await it.until("press Ctrl-C to stop: ")
        it.type("9\n")  # not an option: it asks again
        await it.until("press Ctrl-C to stop: ")
        it.type("1\n")
        await it.until("\n> ")
        it.type("slowly: 400\n")
        await it.until("slowly: 400")
        await it.until("1")
        it.type("\x03")
        await it.until("The turn ended: cancelled")
        await it.until("> ")
        it.type("\x03")
        assert await it.ended() == 0
    (chat,) = await started_world.controller.call("GET", "/api/chats")
    assert (chat["status"], chat["turn"]) == ("idle", 2)


async def test_conversation_without_messages_leaves_no_chat(started_world: World) -> None:
    started = await started_world.controller.call(
        "POST", "/api/auth/key", {"provider": "codex", "apiKey": KEY}
    )
    await started_world.controller.wait_for_session(started["sessionId"])
    async with polydev(started_world, "chat", "codex") as it:
        await it.until("> ")
        it.type("\x03")
        assert await it.ended() == 0
    assert await started_world.controller.call("GET", "/api/chats") == []
