"""JSON-RPC 2.0 with one message a line, as the Agent Client Protocol uses it.

Lines are bounded; invalid messages are skipped.
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
    """A refused request."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Source(Protocol):
    """An agent's input."""

    async def read(self, n: int = -1) -> bytes: ...


class Sink(Protocol):
    """An agent's output."""

    def write(self, data: bytes) -> None: ...


@dataclass(frozen=True, slots=True)
class Message:
    """A request (method and id), a notification (method) or a response (id)."""

    method: str | None
    id: int | str | None
    params: dict[str, Any]
    result: object = None


@dataclass
class Wire:
    """The connection to the client: outgoing messages and pending requests."""

    sink: Sink
    _next_id: int = 0
    _pending: dict[int | str, asyncio.Future[object]] = field(default_factory=dict)

    async def messages(self, source: Source) -> AsyncIterator[Message]:
        """Yield the client's messages until the end."""
        rest = b""
        while data := await source.read(_CHUNK):
            *lines, rest = (rest + data).split(b"\n")
            if len(rest) > _LINE_BYTES:
                return
            for line in lines:
                if (message := _message(line)) is not None:
                    yield message

    def notify(self, method: str, params: dict[str, Any]) -> None:
        """Send a notification to the client."""
        self._send({"method": method, "params": params})

    async def request(self, method: str, params: dict[str, Any]) -> object:
        """Send a request to the client; return its result, or None on an error."""
        self._next_id += 1
        answer: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._pending[self._next_id] = answer
        self._send({"id": self._next_id, "method": method, "params": params})
        return await answer

    def resolve(self, message: Message) -> None:
        """Complete a pending request with the client's response."""
        pending = self._pending.pop(message.id, None) if message.id is not None else None
        if pending is not None and not pending.done():
            pending.set_result(message.result)

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
