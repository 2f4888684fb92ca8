"""JSON-RPC 2.0, one message a line, as the Agent Client Protocol has it on standard streams.

Used by the simulated agent and its sessions. Lines are bounded; those that are no message are
passed over.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Protocol

_LINE_BYTES = 4 * 1024 * 1024
_CHUNK = 64 * 1024


class RpcError(Exception):
    """A request is refused."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Source(Protocol):
    """What an agent reads."""

    async def read(self, n: int = -1) -> bytes: ...


class Sink(Protocol):
    """Where an agent prints."""

    def write(self, data: bytes) -> None: ...


@dataclass(frozen=True, slots=True)
class Message:
    """A request (method and id), a notification (method) or an answer (id)."""

    method: str | None
    id: int | str | None
    params: dict[str, Any]
    result: object = None


@dataclass
class Wire:
    """The client's end: what is said to it, and what it is asked."""

    sink: Sink
    _next_id: int = 0
    _asked: dict[int | str, asyncio.Future[object]] = field(default_factory=dict)

    async def messages(self, source: Source) -> AsyncIterator[Message]:
        """What the client says, until its end."""
        rest = b""
        while data := await source.read(_CHUNK):
            *lines, rest = (rest + data).split(b"\n")
            if len(rest) > _LINE_BYTES:
                return
            for line in lines:
                if (message := _message(line)) is not None:
                    yield message

    def notify(self, method: str, params: dict[str, Any]) -> None:
        """Tell the client something."""
        self._send({"method": method, "params": params})

    async def ask(self, method: str, params: dict[str, Any]) -> object:
        """Ask the client something; its result, None if it answers with an error."""
        self._next_id += 1
        answer: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._asked[self._next_id] = answer
        self._send({"id": self._next_id, "method": method, "params": params})
        return await answer

    def answered(self, message: Message) -> None:
        """The client's answer to what it was asked."""
        asked = self._asked.pop(message.id, None) if message.id is not None else None
        if asked is not None and not asked.done():
            asked.set_result(message.result)

    def reply(self, message: Message, result: dict[str, Any]) -> None:
        self._send({"id": message.id, "result": result})

    def refuse(self, message: Message, error: RpcError) -> None:
        if message.id is not None:
            self._send({"id": message.id, "error": {"code": error.code, "message": str(error)}})

    def _send(self, content: dict[str, Any]) -> None:
        self.sink.write(json.dumps({"jsonrpc": "2.0", **content}).encode() + b"\n")


def _message(line: bytes) -> Message | None:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict):
        return None
    method, params = content.get("method"), content.get("params")
    return Message(
        method if isinstance(method, str) else None,
        content.get("id"),
        params if isinstance(params, dict) else {},
        content.get("result"),
    )
