"""The cache between image builds: a stage is complete or absent."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from polydev.hostagent.images.cache import StageCache
from polydev.shared.errors import ImageBuildFailed


async def test_cache_stage_appears_atomically(tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    cache = StageCache(tmp_path / "cache", temporary)

    async def half(out: Path) -> None:
        out.mkdir()
        raise ImageBuildFailed("half")

    async def whole(out: Path) -> None:
        out.mkdir()
        (out / "file").write_text("whole")

    with pytest.raises(ImageBuildFailed):
        await cache.get("npm", "0" * 16, half)
    assert not (tmp_path / "cache").exists()
    shutil.rmtree(temporary / "npm-fresh")
    first = await cache.get("npm", "0" * 16, whole)
    assert await cache.get("npm", "0" * 16, half) == first
    other = await cache.get("npm", "1" * 16, whole)
    assert (other / "file").read_text() == "whole"
    assert not first.exists(), "only the newest entry of a stage is retained"
