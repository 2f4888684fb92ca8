"""Snapshot files: atomic, encrypted and verified."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from polydev.hostagent.snapshots import (
    Labels,
    MemoryKey,
    MemoryKeys,
    create_snapshot,
    discard,
    key,
    layout,
    open_snapshot,
    writer,
)
from polydev.shared.errors import BadSettings, DiskFull, SnapshotUnusable

KEY = MemoryKey.from_secret(b"k" * 32)
LABELS = Labels("qemu", "QEMU: 7.2\nmemory: 512 MiB\n")
MEMORY = bytes(600_000) + random.Random(5).randbytes(1_900_000) + b"the end"
"""Three chunks: a compressible one, and two that are not."""


async def save(path: Path, content: bytes = MEMORY, key: MemoryKey = KEY) -> Path:
    async with create_snapshot(path, LABELS, key) as sink:
        for start in range(0, len(content), 70_001):
            await sink.write(content[start : start + 70_001])
    return path


async def load(path: Path, key: MemoryKey | None = KEY) -> bytes:
    content = b""
    async with open_snapshot(path, key) as source:
        LABELS.require(source.header)
        while piece := await source.read():
            assert len(piece) <= layout.CHUNK_BYTES
            content += piece
        assert await source.read() == b""
    return content


def chunks(path: Path) -> list[tuple[int, int]]:
    """Return start and end of each chunk, its length field included."""
    content = path.read_bytes()
    offset = len(layout.MAGIC)
    offset += layout.LENGTH.size + layout.LENGTH.unpack_from(content, offset)[0]
    found = []
    while offset < len(content):
        end = offset + layout.LENGTH.size + layout.LENGTH.unpack_from(content, offset)[0]
        found.append((offset, end))
        offset = end
    return found


@pytest.mark.parametrize("size", [0, 1, layout.CHUNK_BYTES, layout.CHUNK_BYTES + 1, len(MEMORY)])
async def test_snapshot_round_trips(tmp_path: Path, size: int) -> None:
    path = await save(tmp_path / "memory.saved", MEMORY[:size])
    assert await load(path) == MEMORY[:size]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [it.name for it in tmp_path.iterdir()] == [path.name]


async def test_memory_is_compressed_and_unreadable(
    tmp_path: Path,
) -> None:
    text = b"a secret that was in memory " * 40_000
    path = await save(tmp_path / "memory.saved", text)
    assert path.stat().st_size < len(text) / 100
    noise = await save(tmp_path / "noise.saved", random.Random(1).randbytes(100_000))
    assert 100_000 < noise.stat().st_size < 100_600
    assert b"secret" not in path.read_bytes()


async def test_two_snapshots_of_equal_memory_differ(tmp_path: Path) -> None:
    first, second = [await save(tmp_path / name, b"x" * 1000) for name in ("a", "b")]
    ((start, end),) = chunks(first)
    assert first.read_bytes()[start + 4 : end] != second.read_bytes()[start + 4 : end]


async def test_any_damage_is_detected(tmp_path: Path) -> None:
    path = await save(tmp_path / "memory.saved")
    whole = path.read_bytes()
    offsets = {0, 5, len(layout.MAGIC), len(layout.MAGIC) + 3, len(layout.MAGIC) + 10}
    offsets |= {whole.index(it) for it in (b"qemu", b"512 MiB", b"salt", KEY.id.encode())}
    for start, end in chunks(path):
        offsets |= {start, start + 3, start + 4, start + 5, (start + end) // 2, end - 17, end - 1}
    for offset in sorted(offsets):
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 1]) + whole[offset + 1 :])
        with pytest.raises(SnapshotUnusable):
            await load(path)
    path.write_bytes(whole)
    assert await load(path) == MEMORY


async def test_truncated_or_extended_file_is_detected(tmp_path: Path) -> None:
    path = await save(tmp_path / "memory.saved")
    whole = path.read_bytes()
    ends = {0, 4, len(layout.MAGIC) + 2, len(layout.MAGIC) + 9, len(whole) - 1}
    for start, _ in chunks(path):
        ends |= {start, start + 2, start + 4, start + 100}
    for end in sorted(ends):
        path.write_bytes(whole[:end])
        with pytest.raises(SnapshotUnusable):
            await load(path)
    start, end = chunks(path)[-1] if chunks(path) else (0, 0)
    for more in (b"\0", whole[-(end - start) :], layout.LENGTH.pack(0)):
        path.write_bytes(whole + more)
        with pytest.raises(SnapshotUnusable):
            await load(path)


async def test_moved_chunks_do_not_decrypt(tmp_path: Path) -> None:
    path = await save(tmp_path / "memory.saved")
    other = await save(tmp_path / "other.saved")
    whole, foreign = path.read_bytes(), other.read_bytes()
    (first, second, third), (begin, *_) = chunks(path), chunks(other)
    pieces = [whole[start:end] for start, end in (first, second, third)]
    for order in ([1, 0, 2], [0, 0, 1, 2], [0, 2], [2], [0, 1, 1, 2]):
        path.write_bytes(whole[: first[0]] + b"".join(pieces[number] for number in order))
        with pytest.raises(SnapshotUnusable):
            await load(path)
    path.write_bytes(whole[: first[0]] + foreign[begin[0] :])
    with pytest.raises(SnapshotUnusable):
        await load(path)


async def test_wrong_lengths_allocate_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "memory.saved"
    path.write_bytes(layout.MAGIC + layout.LENGTH.pack(0xFFFFFFFF) + b"{}")
    with pytest.raises(SnapshotUnusable):
        await load(path)
    whole = (await save(path)).read_bytes()
    start, _ = chunks(path)[0]
    path.write_bytes(whole[:start] + layout.LENGTH.pack(0xFFFFFFFF) + whole[start + 4 :])
    with pytest.raises(SnapshotUnusable, match="damaged"):
        await load(path)


async def test_wrong_key_is_reported_as_a_restart(tmp_path: Path) -> None:
    path = await save(tmp_path / "memory.saved")
    for other in (None, MemoryKey.from_secret(b"o" * 32)):
        with pytest.raises(SnapshotUnusable, match="restarted"):
            await load(path, other)
    with pytest.raises(SnapshotUnusable, match="damaged"):  # another key with the same id
        await load(path, MemoryKey(b"o" * 32, KEY.id))


async def test_fingerprint_difference_is_named(tmp_path: Path) -> None:
    async with open_snapshot(await save(tmp_path / "memory.saved"), KEY) as source:
        with pytest.raises(SnapshotUnusable, match=r"qemu.*firecracker"):
            Labels("firecracker", LABELS.fingerprint).require(source.header)
        for here in ("QEMU: 8.0\nmemory: 512 MiB\n", "memory: 512 MiB\n"):
            with pytest.raises(SnapshotUnusable, match=r"saved: QEMU$"):
                Labels("qemu", here).require(source.header)
        with pytest.raises(SnapshotUnusable):
            Labels("qemu", "memory: 512 MiB\nQEMU: 7.2\n").require(source.header)


async def test_newer_format_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "FORMAT", 2)
    path = await save(tmp_path / "memory.saved")
    with pytest.raises(SnapshotUnusable, match="format 2"):
        await load(path)


@pytest.mark.parametrize("thing", ["nothing", "folder", "link"])
async def test_only_regular_files_are_opened(tmp_path: Path, thing: str) -> None:
    path = tmp_path / "memory.saved"
    if thing == "folder":
        path.mkdir()
    if thing == "link":
        path.symlink_to(await save(tmp_path / "real"))
    with pytest.raises(SnapshotUnusable):
        await load(path)


async def test_failed_write_leaves_nothing(tmp_path: Path) -> None:
    path = await save(tmp_path / "memory.saved")

    async def fail() -> None:
        async with create_snapshot(path, LABELS, KEY) as sink:
            await sink.write(MEMORY)
            raise RuntimeError("the driver failed")

    with pytest.raises(RuntimeError):
        await fail()
    assert list(tmp_path.iterdir()) == []


async def test_full_disk_is_reported_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull):
        await save(tmp_path / "memory.saved")
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


async def test_filling_disk_stops_the_writer(tmp_path: Path) -> None:
    """On a real filesystem of 2 MiB."""
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(small)]
    subprocess.run(mount, check=True)
    written: list[int] = []

    async def fill() -> None:
        async with create_snapshot(small / "memory.saved", LABELS, KEY) as sink:
            for number in range(64):
                await sink.write(random.Random(number).randbytes(1 << 20))
                written.append(number)

    try:
        with pytest.raises(DiskFull):
            await fill()
        assert len(written) < 8, "the full disk was reported late"
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.parametrize("after", range(12))
async def test_cancelled_write_leaves_nothing(tmp_path: Path, after: int) -> None:
    saving = asyncio.create_task(save(tmp_path / "memory.saved"))
    for _ in range(after):
        await asyncio.sleep(0.002)
    saving.cancel()
    try:
        await saving
    except asyncio.CancelledError:
        assert list(tmp_path.iterdir()) == []
    else:
        assert await load(tmp_path / "memory.saved") == MEMORY


async def test_discard_removes_finished_and_unfinished_files(tmp_path: Path) -> None:
    path = await save(tmp_path / "memory.saved")
    writer.temporary_path(path).write_bytes(b"half")
    discard(path)
    assert list(tmp_path.iterdir()) == []
    discard(path)
    discard(tmp_path / "nowhere" / "memory.saved")


# The key ---------------------------------------------------------------------------------------


def test_key_is_created_once_and_loaded(tmp_path: Path) -> None:
    keys = MemoryKeys.for_state(tmp_path / "state", tmp_path / "keys")
    assert keys.load() is None
    made = keys.load_or_create()
    assert made == keys.load_or_create() == keys.load()
    again = MemoryKeys.for_state(tmp_path / "state", tmp_path / "keys")
    assert again.load() == made
    assert MemoryKeys.for_state(tmp_path / "other", tmp_path / "keys").load() is None
    (file,) = tmp_path.rglob(key.KEY_FILE)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert made.secret.hex() not in repr(made)
    assert made.id not in made.secret.hex()


async def test_concurrent_callers_get_the_same_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_whole = key.write_whole

    def write_slowly(*args: Any, **kwargs: Any) -> None:
        time.sleep(0.1)  # time for concurrent callers
        write_whole(*args, **kwargs)

    monkeypatch.setattr(key, "write_whole", write_slowly)
    keys = MemoryKeys.for_state(tmp_path / "state", tmp_path / "keys")
    made = await asyncio.gather(*(asyncio.to_thread(keys.load_or_create) for _ in range(5)))
    assert {it.id for it in made} == {made[0].id}
    assert keys.load() == made[0]


def test_default_folder_is_in_memory(tmp_path: Path) -> None:
    folder = MemoryKeys.for_state(tmp_path)._folder
    assert folder is not None
    assert key._is_in_memory(folder.parents[1])
    assert folder.parents[1] in key._FOLDERS


def test_host_without_tmpfs_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key, "_FOLDERS", (Path("/etc"),))
    keys = MemoryKeys.for_state(tmp_path)
    assert keys.load() is None
    with pytest.raises(BadSettings, match="no tmpfs") as raised:
        keys.load_or_create()
    assert "POLYDEV_MEMORY_KEY_DIR" in raised.value.hint


def test_folder_of_another_user_is_rejected(tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65534)
    with pytest.raises(BadSettings, match="another user"):
        MemoryKeys.for_state(tmp_path, tmp_path).load_or_create()
