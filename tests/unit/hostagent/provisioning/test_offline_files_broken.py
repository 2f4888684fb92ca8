"""Files written into a stopped machine's disk: damaged disks and interrupted writes."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import ext4_images as images
import pytest
from ext4_images import AUTH, TOKEN, UPPER_AUTH, codex_folder, used_disk

from polydev.hostagent.provisioning.disks import make_disk
from polydev.hostagent.provisioning.offline_files import write_offline
from polydev.shared.domain import GuestFile
from polydev.shared.errors import ImageDamaged, ImageInUse, PolydevError


@pytest.fixture
async def fresh(tmp_path: Path) -> Path:
    """A new machine's disk: no boot has touched it."""
    disk = tmp_path / "disk.img"
    await make_disk(disk, 256, uid=images.OWNER, cache_dir=tmp_path / "cache")
    return disk


def smash_superblock(disk: Path) -> None:
    with disk.open("r+b") as file:
        file.write(b"\xa5" * 4096)


def smash_root(disk: Path) -> None:
    """The root directory's inode, and its checksum: e2fsck does not repair that unasked."""
    images.debugfs(disk, "clri <2>", "set_super_value state 2")


@pytest.mark.parametrize("smash", [smash_superblock, smash_root])
async def test_damaged_disk_is_reported(tmp_path: Path, smash: Callable[[Path], None]) -> None:
    disk = used_disk(tmp_path, codex_folder)
    smash(disk)
    with pytest.raises(ImageDamaged, match="is damaged"):
        await write_offline(disk, [GuestFile(AUTH, TOKEN)])


@pytest.mark.parametrize("seed", range(12))
async def test_corrupted_disk_is_written_or_refused_but_never_trusted(
    tmp_path: Path, seed: int
) -> None:
    disk = used_disk(tmp_path, codex_folder, size_mib=16)
    chance = random.Random(seed)
    with disk.open("r+b") as file:
        for _ in range(chance.choice([1, 20, 400])):
            file.seek(chance.randrange(0, 2 << 20))
            file.write(chance.randbytes(chance.choice([1, 4, 512])))
    refused: PolydevError | None = None
    try:
        await write_offline(disk, [GuestFile(AUTH, TOKEN)])
    except PolydevError as error:
        refused = error
    if refused is None:
        assert images.content(disk, UPPER_AUTH) == TOKEN
    else:
        assert len(refused.line()) < 1000
        assert refused.line().isprintable()


async def test_cancelled_write_leaves_the_old_or_the_new_file(fresh: Path) -> None:
    await write_offline(fresh, [GuestFile(AUTH, b"old")])
    for step in range(12):
        writing = asyncio.create_task(write_offline(fresh, [GuestFile(AUTH, TOKEN)]))
        await asyncio.sleep(step * 0.008)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        assert images.content(fresh, UPPER_AUTH) in {b"old", TOKEN}
        images.assert_clean(fresh)
    await write_offline(fresh, [GuestFile(AUTH, b"last")])
    assert images.names(fresh, "/upper/root/.codex") == ["auth.json"]


_WRITE_FOREVER = """
import asyncio, sys
from pathlib import Path
from polydev.shared.domain import GuestFile
from polydev.hostagent.provisioning.offline_files import write_offline
async def main():
    while True:
        await write_offline(Path(sys.argv[1]), [GuestFile("/root/.codex/auth.json", b"other")])
        print("ready", flush=True)
asyncio.run(main())
"""


async def test_agent_killed_during_a_write_damages_nothing(fresh: Path) -> None:
    chance = random.Random(7)
    for _ in range(4):
        agent = subprocess.Popen(
            [sys.executable, "-c", _WRITE_FOREVER, fresh],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert agent.stdout is not None
        assert agent.stdout.readline() == b"ready\n"
        await asyncio.sleep(chance.uniform(0, 0.15))  # anywhere in a round of its loop
        agent.send_signal(signal.SIGKILL)
        agent.wait()
        agent.stdout.close()
        await _once_free(lambda: write_offline(fresh, [GuestFile(AUTH, TOKEN)]))
        assert images.content(fresh, UPPER_AUTH) == TOKEN
        assert images.names(fresh, "/upper/root/.codex") == ["auth.json"]
        images.assert_clean(fresh)


async def _once_free(write: Callable[[], object]) -> None:
    """The tool that a killed agent left holds the disk until it has ended."""
    for _ in range(200):
        try:
            await write()  # type: ignore[misc]
        except ImageInUse:
            await asyncio.sleep(0.02)
        else:
            return
    raise AssertionError("the disk stays in use")
