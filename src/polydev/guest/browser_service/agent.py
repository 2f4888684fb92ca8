"""A CLI that logs in when it is asked to in the Agent Client Protocol: one agent, one question.

Used by `login.py` where a provider's login is of that kind. JSON-RPC on the agent's standard input
and output, one message a line; lines that are no message are what it printed, and are kept as a
terminal's output would be. Everything that comes is bounded.
Source: agentclientprotocol.com, protocol version 1: `initialize`, `authenticate`.
"""

import asyncio
import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .processes import END_GRACE_S, end_group
from .redaction import reportable
from .settings import OUTPUT_BYTES

PROTOCOL_VERSION = 1
LINE_BYTES = 1024 * 1024
REASON_BYTES = 300
METHOD_NOT_FOUND = -32601


class Agent:
    """A running agent. `on_output` is called after each piece of output was kept."""

    def __init__(
        self, process: asyncio.subprocess.Process, method: str, on_output: Callable[[], None]
    ) -> None:
        self._process = process
        self._method = method
        self._on_output = on_output
        self._kept = bytearray()
        self._next_id = 0

    @classmethod
    async def start(
        cls,
        argv: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        method: str,
        on_output: Callable[[], None],
    ) -> "Agent":
        """`method` is the id of the way to authenticate. Raises OSError if it cannot be started."""
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
            cwd=folder,
            limit=LINE_BYTES,
            start_new_session=True,
        )
        return cls(process, method, on_output)

    @property
    def output(self) -> bytes:
        """What it printed besides its messages, the last OUTPUT_BYTES of it."""
        return bytes(self._kept)

    def type(self, text: str) -> None:
        """Raises OSError: there is no terminal."""
        raise OSError("an agent has no terminal")

    async def wait(self) -> str:
        """Have it authenticate, and end it; why it did not, or nothing."""
        printing = asyncio.create_task(self._keep_errors())
        try:
            refusal = await self._authenticate()
            if not refusal:
                await self._leave()
            return refusal
        finally:
            printing.cancel()

    async def end(self) -> None:
        """End the agent and its children, gently first; idempotent."""
        await end_group(self._process)

    async def _authenticate(self) -> str:
        hello = {"protocolVersion": PROTOCOL_VERSION, "clientCapabilities": {}}
        for name, params in (
            ("initialize", hello),
            ("authenticate", {"methodId": self._method}),
        ):
            answer = await self._ask(name, params)
            if answer is None:
                code = await self._process.wait()
                return f"it ended with exit code {code}"
            if "error" in answer:
                return f"it says: {_words(answer['error'])}"
        return ""

    async def _ask(self, method: str, params: dict[str, Any]) -> dict[str, Any] | None:
        """The answer to a request; None if the agent ended before."""
        self._next_id += 1
        asked = self._next_id
        await self._send({"id": asked, "method": method, "params": params})
        while (message := await self._message()) is not None:
            if "method" not in message and message.get("id") == asked:
                return message
            if "method" in message and message.get("id") is not None:
                error = {"code": METHOD_NOT_FOUND, "message": "nothing is offered here"}
                await self._send({"id": message["id"], "error": error})
        return None

    async def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None  # noqa: S101  (a pipe)
        with contextlib.suppress(ConnectionError):  # it ended: reading tells
            self._process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
            await self._process.stdin.drain()

    async def _message(self) -> dict[str, Any] | None:
        """The next message; what is none is kept as output."""
        assert self._process.stdout is not None  # noqa: S101  (a pipe)
        while True:
            try:
                line = await self._process.stdout.readline()
            except ValueError:  # longer than the limit; the reader has dropped it
                continue
            if not line:
                return None
            try:
                message = json.loads(line)
            except (ValueError, RecursionError):
                message = None
            if isinstance(message, dict) and message.get("jsonrpc") == "2.0":
                return message
            self._keep(line)

    async def _leave(self) -> None:
        """Close its input, at which it ends, and has written all that it wanted to write."""
        assert self._process.stdin is not None  # noqa: S101  (a pipe)
        self._process.stdin.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_GRACE_S):
                while await self._message() is not None:
                    pass
                await self._process.wait()

    async def _keep_errors(self) -> None:
        assert self._process.stderr is not None  # noqa: S101  (a pipe)
        while chunk := await self._process.stderr.read(OUTPUT_BYTES):
            self._keep(chunk)

    def _keep(self, chunk: bytes) -> None:
        self._kept += chunk
        del self._kept[:-OUTPUT_BYTES]
        self._on_output()


def _words(error: object) -> str:
    """An error's own words, safe to show."""
    message = error.get("message") if isinstance(error, dict) else None
    text = message if isinstance(message, str) else "it did not say why"
    return reportable(text.encode("utf-8", "replace"), REASON_BYTES).replace("\n", " ")
