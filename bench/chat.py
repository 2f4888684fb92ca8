"""What the relay of a chat adds: from an agent's standard output to a listener's socket.

A real program speaks as an agent, a real turn records what it says (SQLite), a real server streams
it over HTTP on loopback. The reference is the agent's output as it is, sent over loopback at once.
Both listeners time each piece; the difference is what the relay adds. All of it shares one process
and its event loop: the worst case, and what else the machine does slows both.
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
from local_agents import VM_ID, LocalHost, LocalProcess, an_agent

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
from polydev.shared.host_client import Host
from polydev.shared.host_protocol import ExecRequest

GOAL_MS = 5.0
_PAUSE_S = 0.01
_CHAT, _ANN = ChatId("bench"), UserId("ann")
_PIECE = re.compile(rb"<(\d+)>")
_SPEAKING = """
for n in range({pieces}):
    text(f"<{{n}}> some words of an answer ")
    time.sleep({pause_s})
answer(message, {{"stopReason": "end_turn"}})
"""


class _CopyingHost(LocalHost):
    """Sends all that an agent prints to a listener, too, as it is."""

    def __init__(self, listener: asyncio.StreamWriter) -> None:
        self._listener = listener

    @asynccontextmanager
    async def exec(self, vm_id: str, request: ExecRequest) -> AsyncIterator[LocalProcess]:
        async with super().exec(vm_id, request) as process:
            chunks = process.stdout()

            async def copied() -> AsyncIterator[bytes]:
                async for chunk in chunks:
                    self._listener.write(chunk)
                    yield chunk

            process.stdout = copied  # type: ignore[method-assign]
            yield process


class _Turn:
    """Turn that writes an agent's updates and answers no permission request."""

    def __init__(self, writer: EventWriter) -> None:
        self.on_update = EventTranslator(writer.emit, writer.set_title).on_update

    async def on_permission_request(self, params: dict[str, object]) -> str | None:
        return None


async def chat_relay(pieces: int) -> list[str]:
    """Rows: the median, the 99th percentile and the worst of what the relay adds."""
    with tempfile.TemporaryDirectory(prefix="pdb-") as folder:
        database = open_database(None, Path(folder))
        await database.upgrade()
        try:
            added_ms = sorted(await _measured(database, pieces))
        finally:
            await database.close()
    assert len(added_ms) == pieces, f"{pieces - len(added_ms)} pieces were lost"
    p99 = quantiles(added_ms, n=100)[98]
    verdict = "ok" if p99 <= GOAL_MS else "MISSED"
    return [
        f"chat relay adds: median {median(added_ms):.2f} ms, p99 {p99:.2f} ms "
        f"(goal <= {GOAL_MS:g}), worst {added_ms[-1]:.2f} ms   {verdict}"
    ]


async def _measured(database: Database, pieces: int) -> list[float]:
    chat, live_turns = await _a_chat(database), LiveTurns()
    writer = EventWriter(database, live_turns, chat, 2**30)
    async with _served(database, live_turns) as port, _direct(pieces) as (direct_writer, reading):
        host = cast(Host, _CopyingHost(direct_writer))
        agent = Agent(host, VM_ID, an_agent(_SPEAKING.format(pieces=pieces, pause_s=_PAUSE_S)), 60)
        agent.start(lambda _: None)
        listening = asyncio.create_task(_heard(port, pieces))
        flushing = asyncio.create_task(writer.flush_forever())
        session = await agent.open_session(None)
        await agent.prompt(session.session_id, ["go"], _Turn(writer))
        flushing.cancel()
        await writer.finish(TurnEnd.END_TURN, None)
        relayed, direct = await listening, await reading
        await agent.aclose()
    return [(relayed[n] - direct[n]) * 1000 for n in relayed]


async def _a_chat(database: Database) -> Chat:
    """A chat whose first turn has been claimed."""
    nothing = (None, None, 0, ChatStatus.IDLE, None, now(), now())
    chat = Chat(_CHAT, _ANN, "codex", "", TitledBy.NOBODY, *nothing)
    async with database.write() as connection:
        await users.insert(connection, User(_ANN, "ann@example.test", now()))
        await chats.insert(connection, chat)
        await chats.insert_turn(connection, chat, "go", "go", now())
        asked = await chats.get(connection, _CHAT, _ANN)
        claimed = await chats.claim_turn(connection, asked, "bench")
    assert claimed is not None
    return claimed


@asynccontextmanager
async def _served(database: Database, live_turns: LiveTurns) -> AsyncIterator[int]:
    """A server of the chat's stream; its port."""
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
async def _direct(
    count: int,
) -> AsyncIterator[tuple[asyncio.StreamWriter, asyncio.Task[dict[int, float]]]]:
    """A loopback connection: what to write to, and when each piece came out of it."""
    came: asyncio.Future[asyncio.StreamReader] = asyncio.Future()
    server = await asyncio.start_server(lambda reader, _: came.set_result(reader), "127.0.0.1", 0)
    _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    reading = asyncio.create_task(_pieces(await came, count))
    yield writer, reading
    writer.close()
    server.close()


async def _heard(port: int, count: int) -> dict[int, float]:
    """When each piece came to a listener of the stream."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /stream HTTP/1.1\r\nHost: bench\r\n\r\n")
    heard = await _pieces(reader, count)
    writer.close()
    return heard


async def _pieces(reader: asyncio.StreamReader, count: int) -> dict[int, float]:
    """When each piece came, up to the last one."""
    times: dict[int, float] = {}
    rest = b""
    while len(times) < count:
        chunk = await reader.read(64 * 1024)
        assert chunk, "it ended before the last piece"
        at = time.monotonic()
        for found in _PIECE.finditer(rest + chunk):
            times.setdefault(int(found[1]), at)
        rest = (rest + chunk)[-16:]
    return times
