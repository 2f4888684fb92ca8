"""Reads a snapshot: what its header says, and its content, each piece checked before it is used.

`hibernation.py` opens one and hands it to a driver as its source. The file lies beside what a guest
may have filled with anything, and a disk forgets: nothing in it is believed before it opens under
the key, and nothing is taken into memory before its size is known to be small.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO

from backports import zstd
from cryptography.exceptions import InvalidTag
from pydantic import ValidationError

from polydev.hostagent.snapshots.key import MemoryKey
from polydev.hostagent.snapshots.layout import (
    CHUNK_BYTES,
    COMPRESSED,
    FORMAT,
    LENGTH,
    LONGEST_HEADER,
    LONGEST_SEALED,
    MAGIC,
    PLAIN,
    Header,
    Seal,
)
from polydev.hostagent.system.cancellation import run_in_thread_shielded, run_shielded
from polydev.shared.errors import SnapshotUnusable


class SnapshotFile:
    """A `vmm.SnapshotSource`. Made by `reading`."""

    def __init__(self, file: BinaryIO, size: int, header: Header, seal: Seal) -> None:
        self._file = file
        self._size = size
        self._seal = seal
        self._ahead: asyncio.Future[bytes] | None = None
        self.header = header

    async def read(self) -> bytes:
        """The next piece, at most 1 MiB; empty at the end. The one after it is prepared meanwhile.

        Raises: SnapshotUnusable.
        """
        ahead = self._ahead or self._next()
        piece = await asyncio.shield(ahead)
        self._ahead = self._next() if piece else ahead
        return piece

    async def let_go(self) -> None:
        """Close the file, once no thread is at work on it."""
        if self._ahead is not None:
            await asyncio.wait({self._ahead})
            self._ahead.exception()  # seen: whoever did not read so far need not know
        await asyncio.to_thread(self._file.close)

    def _next(self) -> asyncio.Future[bytes]:
        self._ahead = asyncio.ensure_future(asyncio.to_thread(self._read))
        return self._ahead

    def _read(self) -> bytes:
        try:
            if self._file.tell() == self._size:
                return b""
            return self._opened(self._sealed())
        except OSError as error:
            raise SnapshotUnusable(f"Its saved memory cannot be read: {error.strerror}") from error

    def _sealed(self) -> bytes:
        (length,) = LENGTH.unpack(_exactly(self._file, LENGTH.size))
        if length > LONGEST_SEALED:
            raise _damaged()
        return _exactly(self._file, length)

    def _opened(self, sealed: bytes) -> bytes:
        is_last = self._file.tell() == self._size
        try:
            content = self._seal.open(sealed, is_last=is_last)
        except InvalidTag:
            raise _damaged() from None
        if content[:1] == PLAIN:
            return content[1:]
        if content[:1] != COMPRESSED:
            raise _damaged()
        return zstd.ZstdDecompressor().decompress(content[1:], CHUNK_BYTES)


@asynccontextmanager
async def reading(path: Path, key: MemoryKey | None) -> AsyncIterator[SnapshotFile]:
    """The snapshot at `path`. Raises: SnapshotUnusable when it is none, or not for this key."""
    source = await run_in_thread_shielded(_opened, path, key)
    try:
        yield source
    finally:
        await run_shielded(source.let_go())


def _opened(path: Path, key: MemoryKey | None) -> SnapshotFile:
    try:
        return _opened_file(path, key)
    except OSError as error:
        raise SnapshotUnusable(f"Its saved memory cannot be read: {error.strerror}") from error


def _opened_file(path: Path, key: MemoryKey | None) -> SnapshotFile:
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb")
    try:
        header, raw = _header(file)
        if key is None or key.id != header.key_id:
            raise SnapshotUnusable(
                "The key to its saved memory is gone: this host was restarted since"
            )
        size = os.fstat(file.fileno()).st_size
        if file.tell() == size:
            raise _damaged()
        return SnapshotFile(file, size, header, Seal(key, bytes.fromhex(header.salt), raw))
    except BaseException:
        file.close()
        raise


def _header(file: BinaryIO) -> tuple[Header, bytes]:
    if _exactly(file, len(MAGIC)) != MAGIC:
        raise _damaged()
    (length,) = LENGTH.unpack(_exactly(file, LENGTH.size))
    if length > LONGEST_HEADER:
        raise _damaged()
    raw = _exactly(file, length)
    try:
        header = Header.model_validate_json(raw)
        bytes.fromhex(header.salt)
    except (ValidationError, ValueError):
        raise _damaged() from None
    if header.format != FORMAT:
        raise SnapshotUnusable(
            f"Its memory was saved in format {header.format}, and this Polydev reads {FORMAT}"
        )
    return header, raw


def _exactly(file: BinaryIO, count: int) -> bytes:
    content = file.read(count)
    if len(content) != count:
        raise _damaged()
    return content


def _damaged() -> SnapshotUnusable:
    return SnapshotUnusable("Its saved memory is damaged")
