"""Writes snapshots: to a temporary file, compressed, encrypted, synced, then renamed.

A thread works on one chunk while the next is gathered; a faster driver waits.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from backports import zstd

from polydev.hostagent.snapshots.key import MemoryKey
from polydev.hostagent.snapshots.layout import (
    CHUNK_BYTES,
    COMPRESSED,
    FORMAT,
    LENGTH,
    MAGIC,
    PLAIN,
    SALT_BYTES,
    Header,
    Labels,
    Seal,
)
from polydev.hostagent.system.cancellation import run_in_thread_shielded, run_shielded
from polydev.hostagent.system.disk_full import raising_disk_full
from polydev.shared.atomic_files import sync_folder

_LEVEL = 1
"""A quarter of the size for a tenth of a second more; higher levels do not pay off."""


class SnapshotWriter:
    """A `SnapshotSink`. Created by `create_snapshot`."""

    def __init__(self, file: BinaryIO, seal: Seal, folder: Path) -> None:
        self._file = file
        self._seal = seal
        self._folder = folder
        self._buffer = bytearray()
        self._work: asyncio.Future[None] | None = None

    async def write(self, content: bytes) -> None:
        """Write the next bytes. Raises: DiskFull, OSError, at most one chunk later."""
        self._buffer += content
        while len(self._buffer) > CHUNK_BYTES:  # leaves at least one byte for the last chunk
            chunk = bytes(self._buffer[:CHUNK_BYTES])
            del self._buffer[:CHUNK_BYTES]
            await self._put(chunk, is_last=False)

    async def end(self) -> None:
        """Write the last chunk and sync. Raises: DiskFull, OSError."""
        await self._put(bytes(self._buffer), is_last=True)
        await self._wait_written()

    async def close(self) -> None:
        """Close the file, once no thread works on it."""
        if self._work is not None:
            await asyncio.wait({self._work})
        with suppress(OSError):  # write errors were already raised
            await asyncio.to_thread(self._file.close)

    async def _put(self, chunk: bytes, *, is_last: bool) -> None:
        await self._wait_written()
        self._work = asyncio.ensure_future(asyncio.to_thread(self._write, chunk, is_last))

    async def _wait_written(self) -> None:
        """Wait for the worker thread. Raises its error."""
        if self._work is not None:
            await asyncio.shield(self._work)

    def _write(self, chunk: bytes, is_last: bool) -> None:
        packed = zstd.compress(chunk, level=_LEVEL)
        content = COMPRESSED + packed if len(packed) < len(chunk) else PLAIN + chunk
        sealed = self._seal.encrypt(content, is_last=is_last)
        with raising_disk_full(self._folder):
            self._file.write(LENGTH.pack(len(sealed)))
            self._file.write(sealed)
            if is_last:
                self._file.flush()
                os.fsync(self._file.fileno())


@asynccontextmanager
async def create_snapshot(
    path: Path, labels: Labels, key: MemoryKey
) -> AsyncIterator[SnapshotWriter]:
    """Yield a sink; at the end the snapshot is complete and synced at `path`.

    After an error nothing is left. Raises: DiskFull, OSError.
    """
    temporary = temporary_path(path)
    salt = os.urandom(SALT_BYTES)
    described = Header(
        format=FORMAT,
        driver=labels.driver,
        fingerprint=labels.fingerprint,
        key_id=key.id,
        salt=salt.hex(),
    )
    header = described.model_dump_json().encode()
    try:
        file = await run_in_thread_shielded(_open, temporary, path)
        writer = SnapshotWriter(file, Seal(key, salt, header), path.parent)
        try:
            file.write(MAGIC + LENGTH.pack(len(header)) + header)
            yield writer
            await writer.end()
        finally:
            await run_shielded(writer.close())
        await run_in_thread_shielded(_put_in_place, temporary, path)
    except BaseException:
        with suppress(OSError):  # the caller discards it again and gets the error
            await run_in_thread_shielded(discard, path)
        raise


def discard(path: Path) -> None:
    """Delete a snapshot, finished or not, durably. Blocking."""
    there = [name for name in (temporary_path(path), path) if name.exists()]
    for name in there:
        name.unlink(missing_ok=True)
    if there:
        sync_folder(path.parent)


def temporary_path(path: Path) -> Path:
    """Return a snapshot's path while it is written."""
    return path.with_name(f".{path.name}.new")


def _open(temporary: Path, path: Path) -> BinaryIO:
    path.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with raising_disk_full(path.parent):
        return os.fdopen(os.open(temporary, flags, 0o600), "wb")


def _put_in_place(temporary: Path, path: Path) -> None:
    with raising_disk_full(path.parent):
        temporary.replace(path)
        sync_folder(path.parent)
