"""Terminals of a simulated machine: a minimal shell that outlives its connections.

It replaces the tmux of a user's terminal: a new connection first gets the previous output. It knows
`echo`, `stty size`, `exit`, and a program that prints any amount of data, for throughput
measurements.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, field

import asyncssh

from polydev.testing.simulated_vmm.programs.server_process import ServerProcess

TERMINAL = "polydev-terminal"
"""`$0` of the script that starts a user's terminal."""
_PROMPT = b"$ "
_OUTPUT_BYTES = 256 * 1024
_CHUNK = 32 * 1024
_LINE_BYTES = 4096
_ZEROS = re.compile(r"head -c (\d{1,10}) /dev/zero \| base64")
_BASE64_LINE = b"A" * 76 + b"\n"
_ETX, _EOT, _BACKSPACE = 0x03, 0x04, 0x7F


@dataclass
class _Terminal:
    output: bytearray = field(default_factory=bytearray)
    line: bytearray = field(default_factory=bytearray)
    attached: list[ServerProcess] = field(default_factory=list)
    has_ended: bool = False

    async def write(self, data: bytes) -> None:
        self.output += data
        del self.output[:-_OUTPUT_BYTES]
        for process in tuple(self.attached):
            with contextlib.suppress(OSError, asyncssh.Error):
                process.stdout.write(data)
                await process.stdout.drain()


class Terminals:
    """All terminals of one machine, by name."""

    def __init__(self) -> None:
        self._open: dict[str, _Terminal] = {}

    async def attach(self, name: str, process: ServerProcess) -> int:
        """Show a terminal and handle keys, until it ends or the client disconnects."""
        terminal = self._open.get(name)
        if terminal is None:
            terminal = self._open[name] = _Terminal(output=bytearray(_PROMPT))
        process.stdout.write(bytes(terminal.output))
        terminal.attached.append(process)
        try:
            while not terminal.has_ended and (typed := await _read_keys(process)):
                for key in typed:
                    await self._handle_key(terminal, key, process)
        finally:
            terminal.attached.remove(process)
            if terminal.has_ended:
                self._open.pop(name, None)
        return 0

    async def _handle_key(self, terminal: _Terminal, key: int, process: ServerProcess) -> None:
        if key in b"\r\n":
            line, terminal.line = terminal.line.decode(errors="replace"), bytearray()
            await terminal.write(b"\r\n")
            await self._run(terminal, line.strip(), process)
            if not terminal.has_ended:
                await terminal.write(_PROMPT)
        elif key == _ETX:
            terminal.line.clear()
            await terminal.write(b"^C\r\n" + _PROMPT)
        elif key == _EOT and not terminal.line:
            terminal.has_ended = True
        elif key == _BACKSPACE:
            if terminal.line:
                terminal.line.pop()
                await terminal.write(b"\b \b")
        elif len(terminal.line) < _LINE_BYTES:
            terminal.line.append(key)
            await terminal.write(bytes([key]))

    async def _run(self, terminal: _Terminal, line: str, process: ServerProcess) -> None:
        word, _, rest = line.partition(" ")
        if word == "exit":
            terminal.has_ended = True
        elif word == "echo":
            await terminal.write(rest.encode() + b"\r\n")
        elif line == "stty size" and isinstance(process, asyncssh.SSHServerProcess):
            columns, rows, _, _ = process.term_size
            await terminal.write(f"{rows} {columns}\r\n".encode())
        elif (count := parse_zeros(line)) is not None:
            for piece in base64_of_zeros(count):
                await terminal.write(piece)
        elif word:
            await terminal.write(f"sh: {word}: not found\r\n".encode())


def parse_zeros(line: str) -> int | None:
    """Parse `head -c N /dev/zero
    base64`; None for any other line.
    """
    it = _ZEROS.fullmatch(line)
    return int(it[1]) if it else None


async def print_zeros(count: int, process: ServerProcess) -> int:
    """Print zeros in base64, without a terminal."""
    for piece in base64_of_zeros(count):
        process.stdout.write(piece)
        await process.stdout.drain()
    return 0


def base64_of_zeros(count: int) -> list[bytes]:
    """Return the output of `base64` for zero bytes, in pieces."""
    lines, rest = divmod((count + 2) // 3 * 4, 76)
    pieces, left = divmod(lines, _CHUNK // len(_BASE64_LINE))
    piece = _BASE64_LINE * (_CHUNK // len(_BASE64_LINE))
    return [piece] * pieces + [_BASE64_LINE * left, _BASE64_LINE[-rest - 1 :] if rest else b""]


async def _read_keys(process: ServerProcess) -> bytes:
    while True:
        try:
            return await process.stdin.read(_LINE_BYTES)
        except asyncssh.TerminalSizeChanged:
            continue
