"""Login of a CLI through the Agent Client Protocol.

JSON-RPC on the agent's standard input and output, one message per line. Other lines are stored as
output, like a terminal's. All input is bounded.
Source: agentclientprotocol.com, protocol version 1: `initialize`, `authenticate`.
"""

import asyncio
import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..settings import OUTPUT_BYTES
from ..validation.redaction import reportable
from .processes import END_GRACE_S, end_group

PROTOCOL_VERSION = 1
LINE_BYTES = 1024 * 1024
REASON_BYTES = 300
METHOD_NOT_FOUND = -32601


class Agent:
    """Running agent. Calls `on_output` after each new piece of output."""

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
        """Start an agent. `method` is the id of its authentication method. Raises OSError."""
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
        """Last OUTPUT_BYTES of its output besides messages."""
        return bytes(self._kept)

    def type(self, text: str) -> None:
        """Always raises OSError, because there is no terminal."""
        raise OSError("an agent has no terminal")

    async def wait(self) -> str:
        """Authenticate, then end the agent. Returns the reason of a failure, or nothing."""
        printing = asyncio.create_task(self._keep_errors())
        try:
            refusal = await self._authenticate()
            if not refusal:
                await self._leave()
            return refusal
        finally:
            printing.cancel()

    async def end(self) -> None:
        """End the agent and its children, with SIGTERM first. Idempotent."""
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
                return f"it reports: {_error_text(answer['error'])}"
        return ""

    async def _ask(self, method: str, params: dict[str, Any]) -> dict[str, Any] | None:
        """Send a request and return the answer; None if the agent exits first."""
        self._next_id += 1
        asked = self._next_id
        await self._send({"id": asked, "method": method, "params": params})
        while (message := await self._message()) is not None:
            if "method" not in message and message.get("id") == asked:
                return message
            if "method" in message and message.get("id") is not None:
                error = {"code": METHOD_NOT_FOUND, "message": "this client offers no methods"}
                await self._send({"id": message["id"], "error": error})
        return None

    async def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None  # noqa: S101  (a pipe)
        with contextlib.suppress(ConnectionError):  # it has exited; the next read finds out
            self._process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
            await self._process.stdin.drain()

    async def _message(self) -> dict[str, Any] | None:
        """Next message. Other lines are stored as output."""
        assert self._process.stdout is not None  # noqa: S101  (a pipe)
        while True:
            try:
                line = await self._process.stdout.readline()
            except ValueError:  # longer than the limit, and dropped by the reader
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
        """Close its input, which makes it write its files and exit."""
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


def _error_text(error: object) -> str:
    """Message of an error, safe to show."""
    message = error.get("message") if isinstance(error, dict) else None
    text = message if isinstance(message, str) else "it did not say why"
    return reportable(text.encode("utf-8", "replace"), REASON_BYTES).replace("\n", " ")
