"""The terminals of a simulated machine: a few words of a shell, which outlive their connections.

`programs.py` runs one where a person's terminal would run tmux. Whoever attaches is told first what
it has printed, as there. It knows `echo`, `stty size`, `exit`, and a program that prints as much as
it is told, for measuring the way to it.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, field

import asyncssh

from polydev.testing.simulated_vmm.programs.server_process import ServerProcess

TERMINAL = "polydev-terminal"
"""What the program of a person's terminal is called: `$0` of its script."""
_PROMPT = b"$ "
_KEPT_BYTES = 256 * 1024
_CHUNK = 32 * 1024
_LINE_BYTES = 4096
_ZEROS = re.compile(r"head -c (\d{1,10}) /dev/zero \| base64")
_BASE64_LINE = b"A" * 76 + b"\n"
_ETX, _EOT, _BACKSPACE = 0x03, 0x04, 0x7F


@dataclass
class _Terminal:
    kept: bytearray = field(default_factory=bytearray)
    line: bytearray = field(default_factory=bytearray)
    attached: list[ServerProcess] = field(default_factory=list)
    has_ended: bool = False

    async def say(self, data: bytes) -> None:
        self.kept += data
        del self.kept[:-_KEPT_BYTES]
        for process in tuple(self.attached):
            with contextlib.suppress(OSError, asyncssh.Error):
                process.stdout.write(data)
                await process.stdout.drain()


class Terminals:
    """All terminals of one machine, by name."""

    def __init__(self) -> None:
        self._open: dict[str, _Terminal] = {}

    async def attach(self, name: str, process: ServerProcess) -> int:
        """Show a terminal, and take what is typed, until it ends or whoever attached goes."""
        terminal = self._open.get(name)
        if terminal is None:
            terminal = self._open[name] = _Terminal(kept=bytearray(_PROMPT))
        process.stdout.write(bytes(terminal.kept))
        terminal.attached.append(process)
        try:
            while not terminal.has_ended and (typed := await _typed(process)):
                for key in typed:
                    await self._take(terminal, key, process)
        finally:
            terminal.attached.remove(process)
            if terminal.has_ended:
                self._open.pop(name, None)
        return 0

    async def _take(self, terminal: _Terminal, key: int, process: ServerProcess) -> None:
        if key in b"\r\n":
            line, terminal.line = terminal.line.decode(errors="replace"), bytearray()
            await terminal.say(b"\r\n")
            await self._run(terminal, line.strip(), process)
            if not terminal.has_ended:
                await terminal.say(_PROMPT)
        elif key == _ETX:
            terminal.line.clear()
            await terminal.say(b"^C\r\n" + _PROMPT)
        elif key == _EOT and not terminal.line:
            terminal.has_ended = True
        elif key == _BACKSPACE:
            if terminal.line:
                terminal.line.pop()
                await terminal.say(b"\b \b")
        elif len(terminal.line) < _LINE_BYTES:
            terminal.line.append(key)
            await terminal.say(bytes([key]))

    async def _run(self, terminal: _Terminal, line: str, process: ServerProcess) -> None:
        word, _, rest = line.partition(" ")
        if word == "exit":
            terminal.has_ended = True
        elif word == "echo":
            await terminal.say(rest.encode() + b"\r\n")
        elif line == "stty size" and isinstance(process, asyncssh.SSHServerProcess):
            columns, rows, _, _ = process.term_size
            await terminal.say(f"{rows} {columns}\r\n".encode())
        elif (count := zeros_of(line)) is not None:
            for piece in base64_of_zeros(count):
                await terminal.say(piece)
        elif word:
            await terminal.say(f"sh: {word}: not found\r\n".encode())


def zeros_of(line: str) -> int | None:
    """How many a line `head -c N /dev/zero | base64` takes; None for any other."""
    it = _ZEROS.fullmatch(line)
    return int(it[1]) if it else None


async def print_zeros(count: int, process: ServerProcess) -> int:
    """Print them in base64, without a terminal."""
    for piece in base64_of_zeros(count):
        process.stdout.write(piece)
        await process.stdout.drain()
    return 0


def base64_of_zeros(count: int) -> list[bytes]:
    """What `base64` prints for so many zero bytes, in pieces."""
    lines, rest = divmod((count + 2) // 3 * 4, 76)
    pieces, left = divmod(lines, _CHUNK // len(_BASE64_LINE))
    piece = _BASE64_LINE * (_CHUNK // len(_BASE64_LINE))
    return [piece] * pieces + [_BASE64_LINE * left, _BASE64_LINE[-rest - 1 :] if rest else b""]


async def _typed(process: ServerProcess) -> bytes:
    while True:
        try:
            return await process.stdin.read(_LINE_BYTES)
        except asyncssh.TerminalSizeChanged:
            continue
