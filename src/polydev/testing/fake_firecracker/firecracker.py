"""The fake `firecracker`: its command line, and the API on its Unix socket.

Each request is validated against the specification before the machine (`machine.py`) handles it,
and each response afterwards.
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
from polydev.testing.fake_firecracker.guest import ignore_chown
from polydev.testing.fake_firecracker.machine import FakeMachine, Fault

_BODY_BYTES = 51_200  # as the real one's
_REASONS = {200: "OK", 204: "No Content", 400: "Bad Request"}


def prepare() -> None:
    """Load everything that cannot be imported after the chroot."""
    specification.check("PUT", "/vsock", {"guest_cid": 3, "uds_path": "/"})
    specification.check_answer("putGuestVsock", 204, None)
    key = asyncssh.generate_private_key("ssh-ed25519")
    asyncssh.SSHServerConnectionOptions(server_host_keys=[key])


def main(argv: Sequence[str], version: str) -> int:
    """Run until the guest ends; the status is the process's exit status."""
    parser = argparse.ArgumentParser("firecracker", allow_abbrev=False)
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--id", default="anonymous-instance")
    parser.add_argument("--api-sock", default="/run/firecracker.socket")
    options = parser.parse_args(argv)
    if options.version:
        print(f"Firecracker v{version}\n\nA fake: it runs no guest.")
        return 0
    if os.path.lexists(options.api_sock):
        print(f"fake firecracker: {options.api_sock} already exists", file=sys.stderr)
        return 1
    ignore_chown()
    try:
        return asyncio.run(_run(options.id, version, options.api_sock))
    except OSError as error:
        print(f"fake firecracker: {error}", file=sys.stderr)
        return 1


async def _run(name: str, version: str, path: str) -> int:
    machine = FakeMachine(name, version)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, OSError, ValueError):
            await _answer_all(machine, reader, writer)
        writer.close()

    server = await asyncio.start_unix_server(serve, path)
    status = await machine.ended()
    server.close()
    return status


async def _answer_all(
    machine: FakeMachine, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Source: RFC 9112, as far as a client of this API needs it."""
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
            f"HTTP/1.1 {status} {_REASONS[status]}\r\nServer: Firecracker API\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        )
        writer.write(body)
        await writer.drain()


async def _answer(
    machine: FakeMachine, method: str, path: str, content: bytes
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
