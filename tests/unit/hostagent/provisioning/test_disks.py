"""A machine's new disk: cheap, sparse and atomically created."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import ext4_images as images
import pytest

from polydev.hostagent.provisioning.disks import make_disk
from polydev.hostagent.system import sandbox
from polydev.shared.errors import DiskFull, MissingTool

SIZE_MIB = 4096


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A filesystem with too little room for any disk."""
    where = tmp_path / "small"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", where], check=True)
    yield where
    subprocess.run(["umount", where], check=True)


async def test_new_disk_is_sparse_clean_and_owned_by_its_vmm(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    await make_disk(disk, SIZE_MIB, uid=images.OWNER, cache_dir=tmp_path / "cache")
    state = disk.stat()
    assert state.st_size == SIZE_MIB << 20
    assert state.st_blocks * 512 <= 4 << 20
    assert (state.st_uid, state.st_gid, state.st_mode & 0o7777) == (64123, 64123, 0o600)
    assert images.names(disk, "/") == ["lost+found"]
    assert "has_journal" in images.inspect(disk, "show_super_stats -h")
    images.assert_clean(disk)


async def test_guest_has_no_inode_table_to_initialize(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    await make_disk(disk, SIZE_MIB, uid=0, cache_dir=tmp_path / "cache")
    output = subprocess.run(["dumpe2fs", disk], capture_output=True, text=True, check=True).stdout
    groups = output.count("\nGroup ") - output.count("\nGroup descriptor")
    assert groups > 10
    assert output.count("ITABLE_ZEROED") == groups


async def test_disk_takes_milliseconds_with_a_template(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    await make_disk(tmp_path / "first.img", SIZE_MIB, uid=0, cache_dir=cache)
    templates = {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}
    best_s = 1e9
    for number in range(10):
        started = time.monotonic()
        await make_disk(tmp_path / f"{number}.img", SIZE_MIB, uid=0, cache_dir=cache)
        best_s = min(best_s, time.monotonic() - started)
    assert best_s <= 0.05
    assert {path.name: path.stat().st_mtime_ns for path in cache.iterdir()} == templates


async def test_existing_disk_is_not_changed(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(b"the user's files")
    await make_disk(disk, SIZE_MIB, uid=0, cache_dir=tmp_path / "cache")
    assert disk.read_bytes() == b"the user's files"


async def test_concurrent_creations_share_one_template(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    makers = (
        make_disk(tmp_path / f"{number}.img", 64, uid=0, cache_dir=cache) for number in range(8)
    )
    await asyncio.gather(*makers)
    assert len(list(cache.iterdir())) == 1
    for number in range(8):
        images.assert_clean(tmp_path / f"{number}.img")


async def test_maker_that_comes_last_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The template is finished after the last maker did not find it."""
    cache = tmp_path / "cache"
    await make_disk(tmp_path / "first.img", 64, uid=0, cache_dir=cache)
    (template,) = cache.iterdir()
    seen: list[bool] = []
    is_there = Path.exists

    def exists(path: Path) -> bool:
        if path == template:
            seen.append(len(seen) > 0)
            return seen[-1]
        return is_there(path)

    monkeypatch.setattr(Path, "exists", exists)
    await make_disk(tmp_path / "second.img", 64, uid=0, cache_dir=cache)
    assert (seen, list(cache.iterdir())) == ([False, True], [template])


async def test_interrupted_template_is_created_again(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    await make_disk(tmp_path / "first.img", 64, uid=0, cache_dir=cache)
    (template,) = cache.iterdir()
    template.with_suffix(".new").write_bytes(b"half")
    template.unlink()
    await make_disk(tmp_path / "second.img", 64, uid=0, cache_dir=cache)
    assert list(cache.iterdir()) == [template]
    images.assert_clean(tmp_path / "second.img")


async def test_full_host_disk_is_reported_and_nothing_is_left(tmp_path: Path, small: Path) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(DiskFull, match=str(small)):
        await make_disk(small / "disk.img", SIZE_MIB, uid=0, cache_dir=cache)
    assert list(small.iterdir()) == []
    with pytest.raises(DiskFull):
        await make_disk(tmp_path / "disk.img", SIZE_MIB, uid=0, cache_dir=small / "cache")
    assert not (tmp_path / "disk.img").exists()


async def test_without_mke2fs_its_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "_PATH", os.fspath(tmp_path))
    with pytest.raises(MissingTool) as caught:
        await make_disk(tmp_path / "disk.img", 64, uid=0, cache_dir=tmp_path / "cache")
    assert "e2fsprogs" in caught.value.line()
