"""A snapshot kept in this process: for tests of drivers, which do not care where it lies."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

_PIECE = 300_000


@dataclass
class KeptMemory:
    """A sink; `source` reads it again, any number of times."""

    content: bytearray = field(default_factory=bytearray)
    meanwhile: Callable[[int], Awaitable[None]] | None = None
    """Called with the number of bytes that were there before each piece."""

    async def write(self, content: bytes) -> None:
        if self.meanwhile is not None:
            await self.meanwhile(len(self.content))
        self.content += content

    def source(self, meanwhile: Callable[[int], Awaitable[None]] | None = None) -> KeptSource:
        return KeptSource(bytes(self.content), meanwhile)


@dataclass
class KeptSource:
    content: bytes
    meanwhile: Callable[[int], Awaitable[None]] | None = None
    place: int = 0

    async def read(self) -> bytes:
        if self.meanwhile is not None:
            await self.meanwhile(self.place)
        piece = self.content[self.place : self.place + _PIECE]
        self.place += len(piece)
        return piece
