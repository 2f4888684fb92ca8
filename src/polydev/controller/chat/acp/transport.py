"""The agent's end of a conversation: lines of JSON-RPC, from a machine that may say anything.

`agent.py` gives it to the protocol's library as its transport. Lines, rates and what is open at a
time are bounded: an agent that says too much is not read for a while, one that breaks the bounds is
given up. Updates go to `on_update` in their order, without the library; of requests and answers it
gets only what has the right shape.
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

Update = Callable[[str, dict[str, Any]], None]
"""Told of a session's update."""

MAX_LINE_BYTES = 8 * 1024 * 1024
MAX_STRAY_BYTES = 1024 * 1024
"""Of lines that are no messages, in an agent's life."""
MAX_REQUESTS = 32
"""That the agent may have open at once."""
MAX_SESSION_ID = 256
MAX_BRACKETS = 250_000
"""In a line: what holds nothing takes twenty times its length in memory, and a second to read."""
_BYTES_PER_S = 8 * 1024 * 1024
_MESSAGES_PER_S = 4000
_BURST_S = 2.0
_LOOP_SHARE = 0.25
"""Of this process' time: so much may reading one agent take."""
_MAX_REQUEST_ID = 128
_MAX_ERROR_CHARACTERS = 500
_INTERNAL_ERROR = -32603
_NOT_FOUND = 127


class Wire:
    """A transport over a program in a machine."""

    def __init__(self, process: GuestProcess, name: str, on_update: Update) -> None:
        self.failure: PolydevError | None = None
        """Why it ended."""
        self.ended = asyncio.Event()
        self._process = process
        self._chunks = process.stdout()
        self._name = name
        self._on_update = on_update
        self._lines: deque[bytes] = deque()
        self._rest = bytearray()
        self._stray_bytes = 0
        self._requests = 0
        self._pace = _Pace()
        self._writing = asyncio.Lock()

    async def send(self, message: dict[str, Any]) -> None:
        """Send a message, waiting while the agent does not read."""
        if "method" not in message:
            self._requests -= 1
        data = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        async with self._writing:
            await self._process.write(data)

    async def receive(self) -> dict[str, Any] | None:
        """The next request or answer; None when nothing more comes: `failure` says why."""
        try:
            while True:
                while self._lines:
                    message = self._read_at_its_cost(self._lines.popleft())
                    if message is not None:
                        return message
                await self._read_on()
        except StopAsyncIteration:
            self.failure = self._end_of_program()
        except PolydevError as error:
            self.failure = error
        except Exception:
            log.exception("what %s says cannot be read", self._name)
            self.failure = GuestMisbehaved(f"{self._name} says what cannot be read")
        self.ended.set()
        return None

    async def close(self) -> None:
        """End the program."""
        self.ended.set()
        await self._process.aclose()

    async def _read_on(self) -> None:
        """Take in the next lines. Raises StopAsyncIteration at the end."""
        chunk = await anext(self._chunks)
        *whole, rest = chunk.split(b"\n")
        for line in whole:
            self._lines.append(bytes(self._rest) + line if self._rest else line)
            self._rest.clear()
        self._rest += rest
        longest = max((len(it) for it in self._lines), default=0)
        if max(longest, len(self._rest)) > MAX_LINE_BYTES:
            raise GuestMisbehaved(f"{self._name} said more than {MAX_LINE_BYTES} bytes at once")
        await self._pace.spend(len(chunk), len(whole))

    def _read_at_its_cost(self, line: bytes) -> dict[str, Any] | None:
        """`_read`; an agent whose lines take long to read is read the less often."""
        began = time.thread_time()
        try:
            return self._read(line)
        finally:
            self._pace.owe((time.thread_time() - began) / _LOOP_SHARE)

    def _read(self, line: bytes) -> dict[str, Any] | None:
        """The message for the library, if it is one."""
        if len(line) > MAX_BRACKETS and line.count(b"[") + line.count(b"{") > MAX_BRACKETS:
            raise GuestMisbehaved(f"{self._name} said more values at once than are read")
        message = _parsed(line)
        method = message.get("method")
        params = message.get("params")
        params = params if isinstance(params, dict) else {}
        if isinstance(method, str) and "id" in message:
            return self._request(message["id"], method, params)
        if method == "session/update":
            self._update(params)
            return None
        answer = None if "method" in message else _answer(message)
        if answer is None and not isinstance(method, str):
            self._pass_over(line)
        return answer

    def _update(self, params: dict[str, Any]) -> None:
        session_id, update = params.get("sessionId"), params.get("update")
        if isinstance(session_id, str) and isinstance(update, dict):
            self._on_update(session_id, update)

    def _request(
        self, request_id: object, method: str, params: dict[str, Any]
    ) -> dict[str, Any] | None:
        is_number = isinstance(request_id, int) and not isinstance(request_id, bool)
        is_text = isinstance(request_id, str) and len(request_id) <= _MAX_REQUEST_ID
        if not is_number and not is_text:
            return None
        self._requests += 1
        if self._requests > MAX_REQUESTS:
            raise GuestMisbehaved(f"{self._name} asked more than {MAX_REQUESTS} things at once")
        return {"jsonrpc": "2.0", "id": request_id, "method": method[:64], "params": params}

    def _pass_over(self, line: bytes) -> None:
        """What is no message, such as a warning, is passed over as long as it is little."""
        self._stray_bytes += len(line) + 1
        if self._stray_bytes > MAX_STRAY_BYTES:
            raise GuestMisbehaved(f"{self._name} says things that are no messages")

    def _end_of_program(self) -> PolydevError:
        code = self._process.exit_code
        if code == _NOT_FOUND:
            return ChatFailed(
                f"{self._name} cannot chat in this machine: its agent is not there",
                hint="The machine is older than this version: destroy it and connect again",
            )
        return ChatFailed(
            f"{self._name} ended in the middle, with exit code {code}",
            hint="Say it again; a machine with more memory helps if it happens often",
        )


def _answer(message: dict[str, Any]) -> dict[str, Any] | None:
    request_id = message.get("id")
    if not isinstance(request_id, int) or isinstance(request_id, bool):
        return None
    answer: dict[str, Any] = {"jsonrpc": "2.0", "id": request_id}
    if "error" not in message:
        result = message.get("result")
        return answer | {"result": result if isinstance(result, dict) else {}}
    error = message["error"] if isinstance(message["error"], dict) else {}
    code, said = error.get("code"), error.get("message")
    is_code = isinstance(code, int) and abs(code) < 2**31
    told = sanitize.one_line(said, _MAX_ERROR_CHARACTERS) if isinstance(said, str) else ""
    return answer | {"error": {"code": code if is_code else _INTERNAL_ERROR, "message": told}}


def _parsed(line: bytes) -> dict[str, Any]:
    """The line as JSON; empty if it is no object."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return message if isinstance(message, dict) else {}


class _Pace:
    """Lets through so much a second, and more for a moment."""

    def __init__(self) -> None:
        self._spent_s = 0.0
        self._at = asyncio.get_running_loop().time()

    def owe(self, seconds: float) -> None:
        """What came has cost so much besides; the next `spend` waits for that, too."""
        self._spent_s += seconds

    async def spend(self, byte_count: int, messages: int) -> None:
        """Wait as long as that costs."""
        at = asyncio.get_running_loop().time()
        self._spent_s = max(0.0, self._spent_s - (at - self._at))
        self._at = at
        self._spent_s += max(byte_count / _BYTES_PER_S, messages / _MESSAGES_PER_S)
        if self._spent_s > _BURST_S:
            await asyncio.sleep(self._spent_s - _BURST_S)
