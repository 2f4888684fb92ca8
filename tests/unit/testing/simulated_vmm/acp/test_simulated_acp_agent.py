"""The agent of a simulated CLI, driven by the protocol's client library."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import acp
import pytest
from acp import schema
from acp.client.connection import ClientSideConnection

from polydev.testing.simulated_vmm.acp.agent import AcpAgent
from polydev.testing.simulated_vmm.acp.wire import Wire


class User:
    """A client that stores updates, and answers permission requests with `choice`."""

    def __init__(self) -> None:
        self.updates: list[Any] = []
        self.asked: list[Any] = []
        self.choice: str | None = "allow_once"
        self.has_update = asyncio.Event()

    async def session_update(self, session_id: str, update: Any, **_: Any) -> None:
        self.updates.append(update)
        self.has_update.set()

    async def request_permission(
        self, session_id: str, tool_call: Any, options: list[Any], **_: Any
    ) -> schema.RequestPermissionResponse:
        self.asked.append((tool_call, options))
        if self.choice is None:
            await asyncio.Event().wait()
        chosen = schema.AllowedOutcome(outcome="selected", optionId=str(self.choice))
        return schema.RequestPermissionResponse(outcome=chosen)

    def text(self, kind: type = schema.AgentMessageChunk) -> str:
        return "".join(it.content.text for it in self.updates if isinstance(it, kind))

    def on_connect(self, connection: object) -> None:
        """Do nothing."""


Start = Callable[[User], Awaitable[ClientSideConnection]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Start an agent in the test's machine, and connect a client to it."""
    running: list[asyncio.Task[int]] = []
    (tmp_path / "logged-in").touch()

    async def connect(user: User) -> ClientSideConnection:
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=theirs)
        agent = AcpAgent(tmp_path, Wire(writer), is_logged_in=(tmp_path / "logged-in").exists)
        running.append(asyncio.create_task(agent.run(reader)))
        mine_in, mine_out = await asyncio.open_connection(sock=ours)
        client = acp.connect_to_agent(user, mine_out, mine_in)
        updates = await client.initialize(protocol_version=1)
        assert updates.agent_capabilities is not None
        assert updates.agent_capabilities.load_session
        return client

    yield connect
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


async def ask(client: ClientSideConnection, session_id: str, text: str) -> str:
    answer = await client.prompt(session_id=session_id, prompt=[acp.text_block(text)])
    return str(answer.stop_reason)


async def new(client: ClientSideConnection) -> str:
    return (await client.new_session(cwd="/root", mcp_servers=[])).session_id


async def test_answer_is_streamed(start: Start) -> None:
    user = User()
    client = await start(user)
    assert await ask(client, await new(client), "Hello there") == "end_turn"
    assert user.text() == "You said: Hello there"
    assert len(user.updates) > 2


async def test_tools_need_permission(start: Start, tmp_path: Path) -> None:
    user = User()
    client = await start(user)
    assert await ask(client, await new(client), "write notes/a.txt: hi\nrun: ls") == "end_turn"
    assert [call.kind for call, _ in user.asked] == ["edit", "execute"]
    assert [it.kind for it in user.asked[0][1]] == ["allow_once", "allow_always", "reject_once"]
    assert (tmp_path / "root/notes/a.txt").read_text() == "hi\n"
    updates = [it for it in user.updates if isinstance(it, schema.ToolCallProgress)]
    assert [it.status for it in updates] == ["in_progress", "completed"] * 2
    start_of = next(it for it in user.updates if isinstance(it, schema.ToolCallStart))
    diff = start_of.content[0]
    assert (diff.path, diff.new_text) == ("/root/notes/a.txt", "hi\n")


async def test_refused_tools_do_not_run(start: Start, tmp_path: Path) -> None:
    user = User()
    user.choice = "reject_once"
    client = await start(user)
    assert await ask(client, await new(client), "write a.txt: hi") == "end_turn"
    assert not (tmp_path / "root/a.txt").exists()
    assert "did not allow" in user.text()


async def test_always_allow_covers_the_kind(start: Start) -> None:
    user = User()
    user.choice = "allow_always"
    client = await start(user)
    session_id = await new(client)
    await ask(client, session_id, "run: a\nrun: b\nwrite c: d")
    await ask(client, session_id, "run: e")
    assert [call.kind for call, _ in user.asked] == ["execute", "edit"]


@pytest.mark.parametrize("prompt", ["slowly: 500", "run: sleep"])
async def test_turn_can_be_cancelled(start: Start, prompt: str) -> None:
    user = User()
    user.choice = None
    client = await start(user)
    session_id = await new(client)
    turn = asyncio.create_task(ask(client, session_id, prompt))
    async with asyncio.timeout(10):
        await user.has_update.wait()
        await client.cancel(session_id=session_id)
        assert await turn == "cancelled"
    assert await ask(client, session_id, "still there?") == "end_turn"


async def test_later_agent_loads_a_session_with_its_updates(start: Start) -> None:
    first, second = User(), User()
    client = await start(first)
    session_id = await new(client)
    await ask(client, session_id, "plan\nthink: hm\nwrite a: b")
    later = await start(second)
    await later.load_session(session_id=session_id, cwd="/root", mcp_servers=[])
    assert second.text(schema.UserMessageChunk) == "plan\nthink: hm\nwrite a: b"
    output = [it for it in second.updates if not isinstance(it, schema.UserMessageChunk)]
    assert output == first.updates
    plans = [it for it in output if isinstance(it, schema.AgentPlanUpdate)]
    assert [entry.status for entry in plans[-1].entries] == ["completed"] * 3
    assert await ask(later, session_id, "again") == "end_turn"


async def test_errors_are_responses(start: Start, tmp_path: Path) -> None:
    client = await start(User())
    session_id = await new(client)
    with pytest.raises(acp.RequestError, match="no more today"):
        await ask(client, session_id, "fail: no more today")
    for unknown in ("../../../etc/passwd", "11111111-1111-4111-8111-111111111111"):
        with pytest.raises(acp.RequestError, match="Invalid session"):
            await client.load_session(session_id=unknown, cwd="/root", mcp_servers=[])
    (tmp_path / "logged-in").unlink()
    with pytest.raises(acp.RequestError) as refused:
        await new(client)
    assert refused.value.code == -32000
