"""Compare creating a machine's disk with copying the golden image."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from bench.common.measure import Comparison, compare
from polydev.hostagent.images import ImageStore
from polydev.hostagent.provisioning.disks import make_disk

DISK_MIB = 4096
GOAL_S = 0.050
GOAL_MIB = 4.0


async def new_disk(images_dir: Path, rounds: int) -> tuple[Comparison, list[str]]:
    """Compare both sides; return rows with the disk's time and size goals too."""
    image = ImageStore(images_dir).require("cli").root_image
    sizes: list[float] = []
    with tempfile.TemporaryDirectory(prefix="pdb-", dir="/var/tmp") as text:
        folder = Path(text)
        path = folder / "disk.img"
        await make_disk(
            path, DISK_MIB, uid=0, cache_dir=folder
        )  # create the template, once per host

        async def ours() -> float:
            path.unlink(missing_ok=True)
            seconds = await _seconds(lambda: make_disk(path, DISK_MIB, uid=0, cache_dir=folder))
            sizes.append(path.stat().st_blocks * 512 / 2**20)
            return seconds

        async def copy() -> float:
            target = folder / "copy.img"
            target.unlink(missing_ok=True)
            return await _seconds(lambda: _copy(image, target))

        comparison = await compare(
            "disk: create, against copy of golden image", ours, copy, rounds=rounds
        )
    slowest = max(comparison.ours_s)
    return comparison, [
        f"new disk: slowest {slowest * 1000:.1f} ms (goal {GOAL_S * 1000:.0f}) "
        f"{'ok' if slowest <= GOAL_S else 'MISSED'}",
        f"new disk: {max(sizes):.2f} MiB allocated (goal {GOAL_MIB:.0f}) "
        f"{'ok' if max(sizes) <= GOAL_MIB else 'MISSED'}",
    ]


async def _seconds(work: Callable[[], Awaitable[object]]) -> float:
    started = time.monotonic()
    await work()
    return time.monotonic() - started


async def _copy(source: Path, target: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *("cp", "--sparse=always", os.fspath(source), os.fspath(target))
    )
    if await process.wait() != 0:
        raise SystemExit("cp failed")
