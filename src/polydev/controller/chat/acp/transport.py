"""Transport for an agent: lines of JSON-RPC from a process in an untrusted machine.

`Agent` passes it to the ACP library. Line length, rates and open requests are bounded: reading
slows down for an agent that sends too much, and stops for one that exceeds a bound. Updates go to
`on_update` in order, past the library, which gets only well-formed requests and responses.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from polydev.controller.chat import sanitize
from polydev.shared.errors import ChatFailed, GuestMisbehaved, PolydevError
from polydev.shared.host_client import GuestProcess

log = logging.getLogger("polydev.controller.chat")

OnUpdate = Callable[[str, dict[str, Any]], None]
"""Called with the id of a session and its update."""

MAX_LINE_BYTES = 8 * 1024 * 1024
MAX_STRAY_BYTES = 1024 * 1024
"""Bytes of lines that are not messages, in an agent's lifetime."""
MAX_REQUESTS = 32
"""Requests that the agent may have open at once."""
MAX_SESSION_ID = 256
MAX_BRACKETS = 250_000
"""Brackets per line: empty values take twenty times their length in memory, and a second to
parse."""
_BYTES_PER_S = 8 * 1024 * 1024
_MESSAGES_PER_S = 4000
_BURST_S = 2.0
_LOOP_SHARE = 0.25
"""Share of this process' time that parsing one agent's lines may take."""
_MAX_REQUEST_ID = 128
_MAX_ERROR_CHARACTERS = 500
_INTERNAL_ERROR = -32603
_NOT_FOUND = 127


class AgentTransport:
    """ACP transport over a process in a machine."""

    def __init__(self, process: GuestProcess, name: str, on_update: OnUpdate) -> None:
        self.failure: PolydevError | None = None
        """The error that ended it."""
        self.ended = asyncio.Event()
        self._process = process
        self._chunks = process.stdout()
        self._name = name
        self._on_update = on_update
        self._lines: deque[bytes] = deque()
        self._partial_line = bytearray()
        self._stray_bytes = 0
        self._open_requests = 0
        self._rate_limit = _RateLimit()
        self._write_lock = asyncio.Lock()

    async def send(self, message: dict[str, Any]) -> None:
        """Send a message; waits while the agent does not read."""
        if "method" not in message:
            self._open_requests -= 1
        data = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        async with self._write_lock:
            await self._process.write(data)

    async def receive(self) -> dict[str, Any] | None:
        """Return the next request or response; None at the end, with `failure` set."""
        try:
            while True:
                while self._lines:
                    message = self._parse_with_cost(self._lines.popleft())
                    if message is not None:
                        return message
                await self._read_lines()
        except StopAsyncIteration:
            self.failure = self._exit_error()
        except PolydevError as error:
            self.failure = error
        except Exception:
            log.exception("cannot read the messages of %s", self._name)
            self.failure = GuestMisbehaved(f"{self._name} sent messages that cannot be read")
        self.ended.set()
        return None

    async def close(self) -> None:
        """End the process."""
        self.ended.set()
        await self._process.aclose()

    async def _read_lines(self) -> None:
        """Read a chunk and split it into lines. Raises StopAsyncIteration at the end."""
        chunk = await anext(self._chunks)
        *complete, rest = chunk.split(b"\n")
        for line in complete:
            self._lines.append(bytes(self._partial_line) + line if self._partial_line else line)
            self._partial_line.clear()
        self._partial_line += rest
        longest = max((len(it) for it in self._lines), default=0)
        if max(longest, len(self._partial_line)) > MAX_LINE_BYTES:
            raise GuestMisbehaved(f"{self._name} sent a message of over {MAX_LINE_BYTES} bytes")
        await self._rate_limit.spend(len(chunk), len(complete))

    def _parse_with_cost(self, line: bytes) -> dict[str, Any] | None:
        """Parse a line, and charge the time that it took to the rate limit."""
        started = time.thread_time()
        try:
            return self._parse(line)
        finally:
            self._rate_limit.charge((time.thread_time() - started) / _LOOP_SHARE)

    def _parse(self, line: bytes) -> dict[str, Any] | None:
        """Return the message if it is one for the library."""
        if len(line) > MAX_BRACKETS and line.count(b"[") + line.count(b"{") > MAX_BRACKETS:
            raise GuestMisbehaved(f"{self._name} sent a message with too many values")
        message = _parse_json(line)
        method = message.get("method")
        params = message.get("params")
        params = params if isinstance(params, dict) else {}
        if isinstance(method, str) and "id" in message:
            return self._checked_request(message["id"], method, params)
        if method == "session/update":
            self._on_session_update(params)
            return None
        response = None if "method" in message else _checked_response(message)
        if response is None and not isinstance(method, str):
            self._count_stray(line)
        return response

    def _on_session_update(self, params: dict[str, Any]) -> None:
        session_id, update = params.get("sessionId"), params.get("update")
        if isinstance(session_id, str) and isinstance(update, dict):
            self._on_update(session_id, update)

    def _checked_request(
        self, request_id: object, method: str, params: dict[str, Any]
    ) -> dict[str, Any] | None:
        is_number = isinstance(request_id, int) and not isinstance(request_id, bool)
        is_text = isinstance(request_id, str) and len(request_id) <= _MAX_REQUEST_ID
        if not is_number and not is_text:
            return None
        self._open_requests += 1
        if self._open_requests > MAX_REQUESTS:
            raise GuestMisbehaved(f"{self._name} sent more than {MAX_REQUESTS} requests at once")
        return {"jsonrpc": "2.0", "id": request_id, "method": method[:64], "params": params}

    def _count_stray(self, line: bytes) -> None:
        """Count a line that is not a message, such as a warning; tolerated up to a limit."""
        self._stray_bytes += len(line) + 1
        if self._stray_bytes > MAX_STRAY_BYTES:
            raise GuestMisbehaved(f"{self._name} sent too much that is not a message")

    def _exit_error(self) -> PolydevError:
        code = self._process.exit_code
        if code == _NOT_FOUND:
            return ChatFailed(
                f"{self._name} cannot chat in this machine: its agent is not installed",
                hint="The machine is older than this version: delete it and connect again",
            )
        return ChatFailed(
            f"{self._name} ended unexpectedly with exit code {code}",
            hint="Send your message again. If it happens often, use a machine with more memory",
        )


def _checked_response(message: dict[str, Any]) -> dict[str, Any] | None:
    request_id = message.get("id")
    if not isinstance(request_id, int) or isinstance(request_id, bool):
        return None
    response: dict[str, Any] = {"jsonrpc": "2.0", "id": request_id}
    if "error" not in message:
        result = message.get("result")
        return response | {"result": result if isinstance(result, dict) else {}}
    error = message["error"] if isinstance(message["error"], dict) else {}
    code, text = error.get("code"), error.get("message")
    is_code = isinstance(code, int) and abs(code) < 2**31
    shown = sanitize.one_line(text, _MAX_ERROR_CHARACTERS) if isinstance(text, str) else ""
    return response | {"error": {"code": code if is_code else _INTERNAL_ERROR, "message": shown}}


def _parse_json(line: bytes) -> dict[str, Any]:
    """Parse a line as JSON; empty if it is not an object."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return message if isinstance(message, dict) else {}


class _RateLimit:
    """Limits bytes and messages per second, with a burst."""

    def __init__(self) -> None:
        self._spent_s = 0.0
        self._updated_at = asyncio.get_running_loop().time()

    def charge(self, seconds: float) -> None:
        """Add a cost for which the next `spend` waits."""
        self._spent_s += seconds

    async def spend(self, byte_count: int, messages: int) -> None:
        """Add the cost of what was read, and wait if it exceeds the burst."""
        at = asyncio.get_running_loop().time()
        self._spent_s = max(0.0, self._spent_s - (at - self._updated_at))
        self._updated_at = at
        self._spent_s += max(byte_count / _BYTES_PER_S, messages / _MESSAGES_PER_S)
        if self._spent_s > _BURST_S:
            await asyncio.sleep(self._spent_s - _BURST_S)
