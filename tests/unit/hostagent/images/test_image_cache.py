"""What is kept between builds of images: a stage is there whole, or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from polydev.hostagent.images.cache import StageCache
from polydev.shared.errors import ImageBuildFailed


async def test_a_stage_of_the_cache_appears_whole_or_not(tmp_path: Path) -> None:
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
    assert not first.exists(), "only the newest entry of a stage is kept"
