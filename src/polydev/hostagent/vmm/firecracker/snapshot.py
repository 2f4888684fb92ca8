"""A snapshot as one stream: the VMM's state, then the guest's non-zero memory.

`write` reads the two files that Firecracker wrote; `read` recreates them. Blocking work runs in
threads to completion, even if the caller is cancelled and closes the files. The source has verified
every byte (`SnapshotSource`); the content is still validated, because a VMM wrote it.

    POLYDEV-FC 1\\n | u64 size of the state | the state |
    u64 size of the memory | (u64 offset, u64 length, bytes)... | u64 size of the memory, u64 0
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

from polydev.hostagent.system.cancellation import run_in_thread_shielded
from polydev.hostagent.vmm.contract import SnapshotSink, SnapshotSource
from polydev.shared.errors import SnapshotUnusable, VmmFailed

_MAGIC = b"POLYDEV-FC 1\n"
_SIZE = struct.Struct("<Q")
_EXTENT = struct.Struct("<QQ")
_PIECE = 1024 * 1024
_BLOCK = 16 * 1024
"""Unit of the comparison with zeros."""
_STATE_BYTES = 32 * 1024 * 1024
_ZEROS = bytes(_BLOCK)


async def write(sink: SnapshotSink, state: int, memory: int, memory_bytes: int) -> None:
    """Send two open files. Raises: VmmFailed if they are no snapshot; what the sink raises."""
    state_bytes, found_bytes = os.fstat(state).st_size, os.fstat(memory).st_size
    if not 0 < state_bytes <= _STATE_BYTES or found_bytes != memory_bytes:
        raise VmmFailed(
            f"Firecracker wrote no valid snapshot: {state_bytes} and {found_bytes} bytes"
        )
    content = await run_in_thread_shielded(os.pread, state, state_bytes, 0)
    await sink.write(_MAGIC + _SIZE.pack(len(content)) + content + _SIZE.pack(memory_bytes))
    extents = _extents(memory, memory_bytes)
    while (piece := await run_in_thread_shielded(next, extents, None)) is not None:
        offset, data = piece
        await sink.write(_EXTENT.pack(offset, len(data)) + data)
    await sink.write(_EXTENT.pack(memory_bytes, 0))


async def read(source: SnapshotSource, state: int, memory: int, memory_bytes: int) -> None:
    """Fill two empty files. Raises: SnapshotUnusable, OSError."""
    stream = _Stream(source)
    if await stream.take(len(_MAGIC)) != _MAGIC:
        raise SnapshotUnusable("Not a snapshot of a Firecracker machine")
    (state_bytes,) = _SIZE.unpack(await stream.take(_SIZE.size))
    if state_bytes > _STATE_BYTES:
        raise SnapshotUnusable(f"The VMM state of {state_bytes} bytes is too large")
    await run_in_thread_shielded(_write_at, state, await stream.take(state_bytes), 0)
    (size,) = _SIZE.unpack(await stream.take(_SIZE.size))
    if size != memory_bytes:
        raise SnapshotUnusable(
            f"The snapshot has {size} bytes of memory; the machine has {memory_bytes}"
        )
    await run_in_thread_shielded(os.ftruncate, memory, size)
    end = 0
    while True:
        offset, length = _EXTENT.unpack(await stream.take(_EXTENT.size))
        if (offset, length) == (memory_bytes, 0):
            return
        if not (end <= offset < memory_bytes and 0 < length <= min(_PIECE, memory_bytes - offset)):
            raise SnapshotUnusable("The snapshot holds memory that the machine does not have")
        await run_in_thread_shielded(_write_at, memory, await stream.take(length), offset)
        end = offset + length


class _Stream:
    """Reads a source in pieces of exact sizes."""

    def __init__(self, source: SnapshotSource) -> None:
        self._source = source
        self._rest = bytearray()

    async def take(self, size: int) -> bytes:
        """Return exactly `size` bytes. Raises: SnapshotUnusable at an early end."""
        while len(self._rest) < size:
            piece = await self._source.read()
            if not piece:
                raise SnapshotUnusable("The snapshot is truncated")
            self._rest += piece
        taken = bytes(self._rest[:size])
        del self._rest[:size]
        return taken


def _extents(memory: int, size: int) -> Iterator[tuple[int, bytes]]:
    """Yield non-zero memory in pieces of at most `_PIECE`. Blocking."""
    position = 0
    while (start := _next_data(memory, position, size)) is not None:
        piece = os.pread(memory, _PIECE, start)
        if not piece:
            return
        yield from _not_zero(start, piece)
        position = start + len(piece)


def _not_zero(start: int, piece: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield runs of neighbouring non-zero blocks."""
    begin: int | None = None
    for at in range(0, len(piece), _BLOCK):
        block = piece[at : at + _BLOCK]
        if block != _ZEROS[: len(block)]:
            begin = at if begin is None else begin
        elif begin is not None:
            yield start + begin, piece[begin:at]
            begin = None
    if begin is not None:
        yield start + begin, piece[begin:]


def _next_data(descriptor: int, position: int, size: int) -> int | None:
    """Return the block of the next byte that is in no hole."""
    try:
        found = os.lseek(descriptor, position, os.SEEK_DATA)
    except OSError:  # ENXIO: only a hole follows
        return None
    return None if found >= size else max(position, found // _BLOCK * _BLOCK)


def _write_at(descriptor: int, content: bytes, offset: int) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
