"""An in-memory snapshot, for tests of drivers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

_PIECE = 300_000


@dataclass
class MemorySnapshot:
    """A snapshot sink; `source` opens its content for reading."""

    content: bytearray = field(default_factory=bytearray)
    on_piece: Callable[[int], Awaitable[None]] | None = None
    """Called before each piece with the number of bytes so far."""

    async def write(self, content: bytes) -> None:
        if self.on_piece is not None:
            await self.on_piece(len(self.content))
        self.content += content

    def source(self, on_piece: Callable[[int], Awaitable[None]] | None = None) -> MemorySource:
        return MemorySource(bytes(self.content), on_piece)


@dataclass
class MemorySource:
    content: bytes
    on_piece: Callable[[int], Awaitable[None]] | None = None
    offset: int = 0

    async def read(self) -> bytes:
        if self.on_piece is not None:
            await self.on_piece(self.offset)
        piece = self.content[self.offset : self.offset + _PIECE]
        self.offset += len(piece)
        return piece
