"""The screen of a simulated browser machine: a VNC server with a sign-in form.

Forwarded ports connect to it directly, so that no socket listens. It implements as much of RFB 3.8
(RFC 6143) as noVNC and the tests need: no password, one pixel format, raw rectangles. Clicks, keys
and pasted text are recorded in the machine's `/tmp/screen.jsonl`; Enter submits the form.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

SCREEN_PORT = 5900
EVENT_LOG = Path("tmp/screen.jsonl")
"""In the machine's filesystem."""

WIDTH, HEIGHT = 640, 400
_NAME = b"simulated browser machine"
_VERSION = b"RFB 003.008\n"
_FORMAT = struct.pack("!BBBBHHHBBBxxx", 32, 24, 0, 1, 255, 255, 255, 0, 8, 16)
"""Red, green, blue and a padding byte; noVNC requests the same."""
_ENTER = (0xFF0D, 0xFF8D)
_MAX_PASTED = 64 * 1024
_MAX_ENCODINGS = 256
_PIXEL_BYTES = 4

_PAPER, _INK, _FIELD, _BUTTON, _CARD = (
    bytes([0xE9, 0xEE, 0xF5, 0]),
    bytes([0x22, 0x2B, 0x3A, 0]),
    bytes([0xF4, 0xF6, 0xFA, 0]),
    bytes([0x2F, 0x6F, 0xED, 0]),
    bytes([0xFF, 0xFF, 0xFF, 0]),
)


class Box(NamedTuple):
    """A rectangle of the screen."""

    x: int
    y: int
    width: int
    height: int


_FIELD_AT = Box(180, 170, 280, 36)
_ALL = Box(0, 0, WIDTH, HEIGHT)


class Screen:
    """One machine's screen, for any number of viewers."""

    def __init__(self, root: Path, enter: Callable[[], Awaitable[None]]) -> None:
        """`root` is the machine's filesystem; `enter` submits the form."""
        self._event_log = root / EVENT_LOG
        self._enter = enter
        self._pixels = bytearray(_PAPER * (WIDTH * HEIGHT))
        self._typed = 0
        self._viewers: set[asyncio.Task[None]] = set()
        self._changed: set[asyncio.Queue[Box]] = set()
        for box, colour in (
            (Box(150, 70, 340, 250), _CARD),
            (Box(180, 100, 150, 14), _INK),
            (Box(180, 130, 220, 8), _PAPER),
            (_FIELD_AT, _FIELD),
            (Box(180, 230, 280, 36), _BUTTON),
        ):
            self._fill(box, colour)

    def move(self, root: Path) -> None:
        """Switch to another root folder."""
        self._event_log = root / EVENT_LOG

    async def open_connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the server, as if through its port."""
        ours, theirs = socket.socketpair()
        task = asyncio.create_task(self._serve(theirs))
        self._viewers.add(task)
        task.add_done_callback(self._viewers.discard)
        return await asyncio.open_connection(sock=ours)

    async def close(self) -> None:
        """Close all connections."""
        for task in tuple(self._viewers):
            task.cancel()
        await asyncio.gather(*self._viewers, return_exceptions=True)

    def pixels(self, box: Box) -> bytes:
        """Return a rectangle's pixels, row by row."""
        rows = range(box.y, box.y + box.height)
        starts = ((row * WIDTH + box.x) * _PIXEL_BYTES for row in rows)
        return b"".join(self._pixels[it : it + box.width * _PIXEL_BYTES] for it in starts)

    async def key(self, keysym: int, *, is_down: bool) -> None:
        """Handle a key press or release."""
        if not is_down:
            return
        self._record({"key": keysym})
        if keysym in _ENTER:
            await self._enter()
        elif self._typed < (_FIELD_AT.width - 16) // 10:
            at = Box(_FIELD_AT.x + 8 + 10 * self._typed, _FIELD_AT.y + 11, 7, 14)
            self._typed += 1
            self._draw(at, _INK)

    def click(self, x: int, y: int) -> None:
        """Handle a click with the left button."""
        self._record({"click": [x, y]})
        self._draw(Box(max(0, min(x, WIDTH - 6)), max(0, min(y, HEIGHT - 6)), 6, 6), _INK)

    def paste(self, text: str) -> None:
        """Handle pasted text."""
        self._record({"pasted": text})

    async def _serve(self, sock: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=sock)
        changed: asyncio.Queue[Box] = asyncio.Queue()
        self._changed.add(changed)
        viewer = _Viewer(self, reader, writer, changed)
        with contextlib.suppress(OSError, EOFError, ValueError):
            await viewer.serve()
        self._changed.discard(changed)
        writer.close()

    def _record(self, what: dict[str, Any]) -> None:
        with self._event_log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(what) + "\n")

    def _draw(self, box: Box, colour: bytes) -> None:
        self._fill(box, colour)
        for changed in self._changed:
            changed.put_nowait(box)

    def _fill(self, box: Box, colour: bytes) -> None:
        for row in range(box.y, box.y + box.height):
            start = (row * WIDTH + box.x) * _PIXEL_BYTES
            self._pixels[start : start + box.width * _PIXEL_BYTES] = colour * box.width


class _Viewer:
    """One connection. All methods raise EOFError, and ValueError for invalid messages."""

    def __init__(
        self,
        screen: Screen,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        changed: asyncio.Queue[Box],
    ) -> None:
        self._screen = screen
        self._reader = reader
        self._writer = writer
        self._changed = changed
        self._wanted = asyncio.Event()
        self._buttons = 0

    async def serve(self) -> None:
        await self._handshake()
        sending = asyncio.create_task(self._send_updates())
        try:
            while True:
                await self._handle(await self._read("!B"))
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    async def _handshake(self) -> None:
        self._writer.write(_VERSION)
        if await self._reader.readexactly(len(_VERSION)) != _VERSION:
            raise ValueError("another version of RFB")
        self._writer.write(bytes([1, 1]))  # one security type: none
        await self._read("!B")
        self._writer.write(struct.pack("!I", 0))
        await self._read("!B")
        size = struct.pack("!HH", WIDTH, HEIGHT)
        self._writer.write(size + _FORMAT + struct.pack("!I", len(_NAME)) + _NAME)
        await self._writer.drain()

    async def _handle(self, message: tuple[int, ...]) -> None:
        match message[0]:
            case 0:
                await self._read("!3x")
                if (await self._reader.readexactly(16))[:13] != _FORMAT[:13]:
                    raise ValueError("another pixel format")
            case 2:
                (count,) = await self._read("!xH")
                if count > _MAX_ENCODINGS:
                    raise ValueError("too many encodings")
                await self._reader.readexactly(4 * count)
            case 3:
                is_incremental, *_ = await self._read("!BHHHH")
                if not is_incremental:
                    self._changed.put_nowait(_ALL)
                self._wanted.set()
            case 4:
                is_down, keysym = await self._read("!BxxI")
                await self._screen.key(keysym, is_down=bool(is_down))
            case 5:
                buttons, x, y = await self._read("!BHH")
                if buttons & ~self._buttons & 1:
                    self._screen.click(x, y)
                self._buttons = buttons
            case 6:
                (length,) = await self._read("!3xI")
                if length > _MAX_PASTED:
                    raise ValueError("too much was pasted")
                self._screen.paste((await self._reader.readexactly(length)).decode("latin-1"))
            case other:
                raise ValueError(f"message {other}")

    async def _send_updates(self) -> None:
        while True:
            await self._wanted.wait()
            box = await self._changed.get()
            self._wanted.clear()
            self._writer.write(struct.pack("!BxHHHHHi", 0, 1, *box, 0))
            self._writer.write(self._screen.pixels(box))
            await self._writer.drain()

    async def _read(self, layout: str) -> tuple[int, ...]:
        return struct.unpack(layout, await self._reader.readexactly(struct.calcsize(layout)))
