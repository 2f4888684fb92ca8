"""Writes a snapshot: aside, compressed where that pays, sealed, synced, and only then in its place.

`hibernation.py` opens one and hands it to a driver as its sink. One chunk is worked on in a thread
while the next is gathered; a driver that is faster waits.
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
from polydev.hostagent.system.disk_full import room_in
from polydev.shared.atomic_files import sync_folder

_LEVEL = 1
"""A quarter of the size for a tenth of a second more; higher levels cost more than they save."""


class SnapshotWriter:
    """A `vmm.SnapshotSink`. Made by `writing`."""

    def __init__(self, file: BinaryIO, seal: Seal, folder: Path) -> None:
        self._file = file
        self._seal = seal
        self._folder = folder
        self._gathered = bytearray()
        self._work: asyncio.Future[None] | None = None

    async def write(self, content: bytes) -> None:
        """Take the next bytes. Raises: DiskFull, OSError, at the latest one chunk later."""
        self._gathered += content
        while len(self._gathered) > CHUNK_BYTES:  # what is left last is never empty
            chunk = bytes(self._gathered[:CHUNK_BYTES])
            del self._gathered[:CHUNK_BYTES]
            await self._put(chunk, is_last=False)

    async def end(self) -> None:
        """Write what is left and make it last. Raises: DiskFull, OSError."""
        await self._put(bytes(self._gathered), is_last=True)
        await self._settled()

    async def let_go(self) -> None:
        """Close the file, once no thread is at work on it."""
        if self._work is not None:
            await asyncio.wait({self._work})
        with suppress(OSError):  # what was not written was told to whoever wrote it
            await asyncio.to_thread(self._file.close)

    async def _put(self, chunk: bytes, *, is_last: bool) -> None:
        await self._settled()
        self._work = asyncio.ensure_future(asyncio.to_thread(self._write, chunk, is_last))

    async def _settled(self) -> None:
        """Return when no thread is at work any more. Raises what it raised."""
        if self._work is not None:
            await asyncio.shield(self._work)

    def _write(self, chunk: bytes, is_last: bool) -> None:
        packed = zstd.compress(chunk, level=_LEVEL)
        content = COMPRESSED + packed if len(packed) < len(chunk) else PLAIN + chunk
        sealed = self._seal.close(content, is_last=is_last)
        with room_in(self._folder):
            self._file.write(LENGTH.pack(len(sealed)))
            self._file.write(sealed)
            if is_last:
                self._file.flush()
                os.fsync(self._file.fileno())


@asynccontextmanager
async def writing(path: Path, labels: Labels, key: MemoryKey) -> AsyncIterator[SnapshotWriter]:
    """A sink for a snapshot that is at `path` when this ends, whole and on the disk itself; when it
    ends by an error, nothing is. Raises: DiskFull, OSError.
    """
    aside = aside_of(path)
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
        file = await run_in_thread_shielded(_opened, aside, path)
        writer = SnapshotWriter(file, Seal(key, salt, header), path.parent)
        try:
            file.write(MAGIC + LENGTH.pack(len(header)) + header)
            yield writer
            await writer.end()
        finally:
            await run_shielded(writer.let_go())
        await run_in_thread_shielded(_put_in_place, aside, path)
    except BaseException:
        with suppress(OSError):  # whoever goes on discards it once more, and is told
            await run_in_thread_shielded(discard, path)
        raise


def discard(path: Path) -> None:
    """Remove a snapshot, finished or not, so that it is gone for good. Blocking."""
    there = [name for name in (aside_of(path), path) if name.exists()]
    for name in there:
        name.unlink(missing_ok=True)
    if there:
        sync_folder(path.parent)


def aside_of(path: Path) -> Path:
    """Where a snapshot is while it is written."""
    return path.with_name(f".{path.name}.new")


def _opened(aside: Path, path: Path) -> BinaryIO:
    path.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with room_in(path.parent):
        return os.fdopen(os.open(aside, flags, 0o600), "wb")


def _put_in_place(aside: Path, path: Path) -> None:
    with room_in(path.parent):
        aside.replace(path)
        sync_folder(path.parent)
