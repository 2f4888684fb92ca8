"""Agents that run as local processes, often misbehaving ones.

`LocalHost.exec` behaves like `HostClient.exec`: the process ends when the block is left.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, cast

from polydev.shared.domain import VmId
from polydev.shared.host_client import HostClient
from polydev.shared.host_protocol import ExecRequest
from polydev.shared.providers import Provider, provider

VM_ID = VmId("vm-00000000-0000-4000-8000-00000000000a")

BEGINNING = """
import json, sys, time

def say(**message):
    print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)

def update(**update):
    say(method="session/update", params={"sessionId": "s-1", "update": update})

def text(words):
    update(sessionUpdate="agent_message_chunk", content={"type": "text", "text": words})

RESULTS = {
    "initialize": {"protocolVersion": 1, "agentCapabilities": {}},
    "session/new": {"sessionId": "s-1"},
    "session/set_mode": {},
}
def answer(message, result):
    say(id=message["id"], result=result)

for line in sys.stdin:
    message = json.loads(line)
    method = message.get("method")
    if method in RESULTS:
        answer(message, RESULTS[method])
    elif method == "session/prompt":
"""
"""An agent without its prompt handler, which is appended with eight spaces of indent."""


class LocalHost:
    """Host that runs agents as local processes."""

    @asynccontextmanager
    async def exec(self, vm_id: str, request: ExecRequest) -> AsyncIterator[LocalProcess]:
        program = await asyncio.create_subprocess_exec(
            *request.argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        process = LocalProcess(program)
        try:
            yield process
        finally:
            await process.aclose()


class LocalProcess:
    """Local process with the interface of GuestProcess."""

    def __init__(self, program: asyncio.subprocess.Process) -> None:
        self._program = program

    @property
    def exit_code(self) -> int | None:
        return self._program.returncode

    async def write(self, data: bytes) -> None:
        assert self._program.stdin is not None
        with suppress(ConnectionError):
            self._program.stdin.write(data)
            await self._program.stdin.drain()

    async def stdout(self) -> AsyncIterator[bytes]:
        assert self._program.stdout is not None
        while chunk := await self._program.stdout.read(64 * 1024):
            yield chunk
        await self._program.wait()

    async def aclose(self) -> None:
        """Kill the process and drain its output."""
        with suppress(ProcessLookupError):
            self._program.kill()
        assert self._program.stdout is not None
        with suppress(RuntimeError):  # a reader is still active, and ends later
            while await self._program.stdout.read(64 * 1024):
                pass
        await self._program.wait()


def local_host() -> HostClient:
    return cast(HostClient, LocalHost())


def provider_with_agent(on_prompt: str, beginning: str = BEGINNING) -> Provider:
    """Provider whose agent runs this code for each prompt."""
    indented = "\n".join(f"        {line}" for line in on_prompt.strip().splitlines())
    argv = (sys.executable, "-c", beginning + indented)
    codex = provider("codex")
    return replace(codex, acp=replace(codex.acp, argv=argv))


class RecordingTurn:
    """Turn that records updates and answers permission requests."""

    def __init__(self, choice: str | None = None) -> None:
        self.updates: list[dict[str, Any]] = []
        self.permission_requests: list[dict[str, Any]] = []
        self._choice = choice

    def on_update(self, update: dict[str, Any]) -> None:
        self.updates.append(update)

    async def on_permission_request(self, params: dict[str, Any]) -> str | None:
        self.permission_requests.append(params)
        return self._choice

    @property
    def text(self) -> str:
        return "".join(it["content"]["text"] for it in self.updates)
