"""Measure the latency that the chat relay adds.

A real program acts as the agent, a turn records its output (SQLite), and a server streams it over
HTTP on loopback. The reference is the same output, sent over loopback directly. Both listeners
record the arrival of each piece; the difference is the relay's latency. Everything shares one
process and one event loop, which is the worst case.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import cast

import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from local_agents import VM_ID, LocalHost, LocalProcess, provider_with_agent

from polydev.controller.api.http.streams import SSE, ResourceStream
from polydev.controller.api.schemas.chats import event_json
from polydev.controller.chat.acp.agent import Agent
from polydev.controller.chat.acp.events import EventTranslator
from polydev.controller.chat.events.buffer import LiveTurns
from polydev.controller.chat.events.subscribe import subscribe
from polydev.controller.chat.events.writer import EventWriter
from polydev.controller.store.engine.database import Database, open_database
from polydev.controller.store.queries.accounts import users
from polydev.controller.store.queries.chats import chats
from polydev.shared.domain import Chat, ChatId, ChatStatus, TitledBy, TurnEnd, User, UserId, now
from polydev.shared.host_client import HostClient
from polydev.shared.host_protocol import ExecRequest

GOAL_MS = 5.0
_PAUSE_S = 0.01
_CHAT, _ANN = ChatId("bench"), UserId("ann")
_PIECE = re.compile(rb"<(\d+)>")
_AGENT_SCRIPT = """
for n in range({pieces}):
    text(f"<{{n}}> some words of an answer ")
    time.sleep({pause_s})
answer(message, {{"stopReason": "end_turn"}})
"""


class _CopyingHost(LocalHost):
    """Copy an agent's output to a listener, unchanged."""

    def __init__(self, listener: asyncio.StreamWriter) -> None:
        self._listener = listener

    @asynccontextmanager
    async def exec(self, vm_id: str, request: ExecRequest) -> AsyncIterator[LocalProcess]:
        async with super().exec(vm_id, request) as process:
            chunks = process.stdout()

            async def copy() -> AsyncIterator[bytes]:
                async for chunk in chunks:
                    self._listener.write(chunk)
                    yield chunk

            process.stdout = copy  # type: ignore[method-assign]
            yield process


class _Turn:
    """Turn that records updates and answers no permission request."""

    def __init__(self, writer: EventWriter) -> None:
        self.on_update = EventTranslator(writer.emit, writer.set_title).on_update

    async def on_permission_request(self, params: dict[str, object]) -> str | None:
        return None


async def chat_relay(pieces: int) -> list[str]:
    """Return a row with the median, 99th percentile and maximum added latency."""
    with tempfile.TemporaryDirectory(prefix="pdb-") as folder:
        database = open_database(None, Path(folder))
        await database.upgrade()
        try:
            added_ms = sorted(await _measure(database, pieces))
        finally:
            await database.close()
    assert len(added_ms) == pieces, f"{pieces - len(added_ms)} pieces are missing"
    p99 = quantiles(added_ms, n=100)[98]
    verdict = "ok" if p99 <= GOAL_MS else "MISSED"
    return [
        f"chat relay, added latency: median {median(added_ms):.2f} ms, p99 {p99:.2f} ms "
        f"(goal <= {GOAL_MS:g}), max {added_ms[-1]:.2f} ms   {verdict}"
    ]


async def _measure(database: Database, pieces: int) -> list[float]:
    chat, live_turns = await _claimed_chat(database), LiveTurns()
    writer = EventWriter(database, live_turns, chat, 2**30)
    async with (
        _serve(database, live_turns) as port,
        _direct_connection(pieces) as (direct_writer, reading),
    ):
        host = cast(HostClient, _CopyingHost(direct_writer))
        script = _AGENT_SCRIPT.format(pieces=pieces, pause_s=_PAUSE_S)
        agent = Agent(host, VM_ID, provider_with_agent(script), 60)
        agent.start(lambda _: None)
        listening = asyncio.create_task(_listen(port, pieces))
        flushing = asyncio.create_task(writer.flush_forever())
        session = await agent.open_session(None)
        await agent.prompt(session.session_id, ["go"], _Turn(writer))
        flushing.cancel()
        await writer.finish(TurnEnd.END_TURN, None)
        relayed, direct = await listening, await reading
        await agent.aclose()
    return [(relayed[n] - direct[n]) * 1000 for n in relayed]


async def _claimed_chat(database: Database) -> Chat:
    """Create a chat and claim its first turn."""
    nothing = (None, None, 0, ChatStatus.IDLE, None, now(), now())
    chat = Chat(_CHAT, _ANN, "codex", "", TitledBy.UNTITLED, *nothing)
    async with database.write() as connection:
        await users.insert(connection, User(_ANN, "ann@example.test", now()))
        await chats.insert(connection, chat)
        await chats.insert_turn(connection, chat, "go", "go", now())
        created = await chats.get(connection, _CHAT, _ANN)
        claimed = await chats.claim_turn(connection, created, "bench")
    assert claimed is not None
    return claimed


@asynccontextmanager
async def _serve(database: Database, live_turns: LiveTurns) -> AsyncIterator[int]:
    """Serve the chat's stream; yield the port."""
    app = FastAPI()

    async def frames() -> AsyncGenerator[str]:
        async for events in subscribe(database, live_turns, _CHAT, _ANN, 0, 15):
            for event in events:
                yield f"id: {event.event_id}\ndata: {json.dumps(event_json(event))}\n\n"

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        return ResourceStream(frames(), SSE, ExitStack())

    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app, log_level="warning", lifespan="off", loop="asyncio")
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        yield listener.getsockname()[1]
        server.should_exit = server.force_exit = True
        await serving


@asynccontextmanager
async def _direct_connection(
    count: int,
) -> AsyncIterator[tuple[asyncio.StreamWriter, asyncio.Task[dict[int, float]]]]:
    """Open a loopback connection; yield its writer and the arrival times."""
    connected: asyncio.Future[asyncio.StreamReader] = asyncio.Future()
    server = await asyncio.start_server(
        lambda reader, _: connected.set_result(reader), "127.0.0.1", 0
    )
    _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    reading = asyncio.create_task(_arrival_times(await connected, count))
    yield writer, reading
    writer.close()
    server.close()


async def _listen(port: int, count: int) -> dict[int, float]:
    """Return the arrival time of each piece of the stream."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /stream HTTP/1.1\r\nHost: bench\r\n\r\n")
    times = await _arrival_times(reader, count)
    writer.close()
    return times


async def _arrival_times(reader: asyncio.StreamReader, count: int) -> dict[int, float]:
    """Read until the last piece; return each arrival time."""
    times: dict[int, float] = {}
    rest = b""
    while len(times) < count:
        chunk = await reader.read(64 * 1024)
        assert chunk, "the stream ended before the last piece"
        at = time.monotonic()
        for found in _PIECE.finditer(rest + chunk):
            times.setdefault(int(found[1]), at)
        rest = (rest + chunk)[-16:]
    return times
