"""The stand-in for `firecracker`: its command line, and the API on its Unix socket.

One connection at a time is enough for one driver, but several are served. Each request is checked
against the specification before the machine (`machine.py`) hears of it, and each answer after.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import asyncssh

from polydev.testing.fake_firecracker import specification
from polydev.testing.fake_firecracker.guest import play_root
from polydev.testing.fake_firecracker.machine import Fault, StandinMachine

_BODY_BYTES = 51_200  # as the real one's
_WORDS = {200: "OK", 204: "No Content", 400: "Bad Request"}


def prepare() -> None:
    """Load everything that cannot be loaded once the root has changed."""
    specification.check("PUT", "/vsock", {"guest_cid": 3, "uds_path": "/"})
    specification.check_answer("putGuestVsock", 204, None)
    key = asyncssh.generate_private_key("ssh-ed25519")
    asyncssh.SSHServerConnectionOptions(server_host_keys=[key])


def main(argv: Sequence[str], version: str) -> int:
    """Run it until its guest ends. Its status is the process' own."""
    parser = argparse.ArgumentParser("firecracker", allow_abbrev=False)
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--id", default="anonymous-instance")
    parser.add_argument("--api-sock", default="/run/firecracker.socket")
    asked = parser.parse_args(argv)
    if asked.version:
        print(f"Firecracker v{version}\n\nA stand-in: it runs no guest.")
        return 0
    if os.path.lexists(asked.api_sock):
        print(f"firecracker stand-in: {asked.api_sock} is there already", file=sys.stderr)
        return 1
    play_root()
    try:
        return asyncio.run(_run(asked.id, version, asked.api_sock))
    except OSError as error:
        print(f"firecracker stand-in: {error}", file=sys.stderr)
        return 1


async def _run(name: str, version: str, path: str) -> int:
    machine = StandinMachine(name, version)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, OSError, ValueError):
            await _answer_all(machine, reader, writer)
        writer.close()

    server = await asyncio.start_unix_server(serve, path)
    status = await machine.ended()
    server.close()
    return status


async def _answer_all(
    machine: StandinMachine, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Source: RFC 9112, as much of it as a client of this API uses."""
    while head := (await reader.readuntil(b"\r\n\r\n")).decode("latin-1"):
        first, *lines = head.rstrip().split("\r\n")
        method, path, _ = first.split(" ")
        fields = {name.lower(): value.strip() for name, _, value in map(_halves, lines)}
        size = int(fields.get("content-length", "0"))
        if size > _BODY_BYTES:
            raise ValueError("too long")
        content = await reader.readexactly(size)
        status, answer = await _answer(machine, method, path, content)
        body = b"" if answer is None else json.dumps(answer).encode()
        writer.write(
            f"HTTP/1.1 {status} {_WORDS[status]}\r\nServer: Firecracker API\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        )
        writer.write(body)
        await writer.drain()


async def _answer(
    machine: StandinMachine, method: str, path: str, content: bytes
) -> tuple[int, dict[str, Any] | None]:
    try:
        body = json.loads(content) if content else None
        operation = specification.check(method, path, body)
    except ValueError as error:
        return 400, {"fault_message": str(error)}
    try:
        answer = await machine.perform(operation, body or {})
    except Fault as fault:
        return 400, {"fault_message": str(fault)}
    status = 204 if answer is None else 200
    specification.check_answer(operation, status, answer)
    return status, answer


def _halves(line: str) -> tuple[str, str, str]:
    return line.partition(":")
