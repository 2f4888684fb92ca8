"""Reads snapshots: the header, and the content, each piece verified before use.

The disk may be corrupt, and a guest may have filled it with anything: nothing is trusted before it
decrypts under the key, and nothing is read into memory before its size is known to be small.
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
    """A `SnapshotSource`. Created by `open_snapshot`."""

    def __init__(self, file: BinaryIO, size: int, header: Header, seal: Seal) -> None:
        self._file = file
        self._size = size
        self._seal = seal
        self._ahead: asyncio.Future[bytes] | None = None
        self.header = header

    async def read(self) -> bytes:
        """Return the next piece, at most 1 MiB; empty at the end. Reads one piece ahead.

        Raises: SnapshotUnusable.
        """
        ahead = self._ahead or self._next()
        piece = await asyncio.shield(ahead)
        self._ahead = self._next() if piece else ahead
        return piece

    async def close(self) -> None:
        """Close the file, once no thread works on it."""
        if self._ahead is not None:
            await asyncio.wait({self._ahead})
            self._ahead.exception()  # retrieved, so that asyncio does not log it
        await asyncio.to_thread(self._file.close)

    def _next(self) -> asyncio.Future[bytes]:
        self._ahead = asyncio.ensure_future(asyncio.to_thread(self._read))
        return self._ahead

    def _read(self) -> bytes:
        try:
            if self._file.tell() == self._size:
                return b""
            return self._open(self._sealed())
        except OSError as error:
            raise SnapshotUnusable(f"Its saved memory is not readable: {error.strerror}") from error

    def _sealed(self) -> bytes:
        (length,) = LENGTH.unpack(_read_exactly(self._file, LENGTH.size))
        if length > LONGEST_SEALED:
            raise _damaged_error()
        return _read_exactly(self._file, length)

    def _open(self, sealed: bytes) -> bytes:
        is_last = self._file.tell() == self._size
        try:
            content = self._seal.decrypt(sealed, is_last=is_last)
        except InvalidTag:
            raise _damaged_error() from None
        if content[:1] == PLAIN:
            return content[1:]
        if content[:1] != COMPRESSED:
            raise _damaged_error()
        return zstd.ZstdDecompressor().decompress(content[1:], CHUNK_BYTES)


@asynccontextmanager
async def open_snapshot(path: Path, key: MemoryKey | None) -> AsyncIterator[SnapshotFile]:
    """Open the snapshot at `path`. Raises: SnapshotUnusable if invalid or of another key."""
    source = await run_in_thread_shielded(_open, path, key)
    try:
        yield source
    finally:
        await run_shielded(source.close())


def _open(path: Path, key: MemoryKey | None) -> SnapshotFile:
    try:
        return _open_file(path, key)
    except OSError as error:
        raise SnapshotUnusable(f"Its saved memory is not readable: {error.strerror}") from error


def _open_file(path: Path, key: MemoryKey | None) -> SnapshotFile:
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb")
    try:
        header, raw = _header(file)
        if key is None or key.id != header.key_id:
            raise SnapshotUnusable("The key to its saved memory is gone: this host has restarted")
        size = os.fstat(file.fileno()).st_size
        if file.tell() == size:
            raise _damaged_error()
        return SnapshotFile(file, size, header, Seal(key, bytes.fromhex(header.salt), raw))
    except BaseException:
        file.close()
        raise


def _header(file: BinaryIO) -> tuple[Header, bytes]:
    if _read_exactly(file, len(MAGIC)) != MAGIC:
        raise _damaged_error()
    (length,) = LENGTH.unpack(_read_exactly(file, LENGTH.size))
    if length > LONGEST_HEADER:
        raise _damaged_error()
    raw = _read_exactly(file, length)
    try:
        header = Header.model_validate_json(raw)
        bytes.fromhex(header.salt)
    except (ValidationError, ValueError):
        raise _damaged_error() from None
    if header.format != FORMAT:
        raise SnapshotUnusable(
            f"Its memory was saved in format {header.format}, but this Polydev reads {FORMAT}"
        )
    return header, raw


def _read_exactly(file: BinaryIO, count: int) -> bytes:
    content = file.read(count)
    if len(content) != count:
        raise _damaged_error()
    return content


def _damaged_error() -> SnapshotUnusable:
    return SnapshotUnusable("Its saved memory is damaged")
