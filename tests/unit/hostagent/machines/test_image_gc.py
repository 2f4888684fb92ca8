"""The garbage collection of golden images removes only unused ones."""

from __future__ import annotations

import logging
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
from image_stores import current_image, image, machine

from polydev.hostagent.images import ImageStore
from polydev.hostagent.machines import image_gc
from polydev.hostagent.machines.image_gc import ImageCollector
from polydev.shared.domain import MachineState


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Create a current CLI image, its predecessor, and two old ones."""
    images = tmp_path / "images"
    current_image(images, "cli-4444", days_old=10)
    image(images, "cli-3333", days_old=40)
    image(images, "cli-2222", days_old=50)
    image(images, "cli-1111", days_old=60)
    return images


def collector(images: Path, state: str = "one") -> ImageCollector:
    machines = images.parent / state / "machines"
    machines.mkdir(parents=True, exist_ok=True)
    return ImageCollector(ImageStore(images), machines)


async def collected(images: Path, state: str = "one") -> list[str]:
    return sorted(await collector(images, state).collect(datetime.now(UTC)))


def left(images: Path) -> set[str]:
    return {image.name for image in ImageStore(images).list()}


async def test_old_images_are_removed_but_for_the_rollback_image(
    images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "polydev.hostagent")
    assert await collected(images) == ["cli-1111", "cli-2222"]
    assert left(images) == {"cli-4444", "cli-3333"}
    assert "removed golden image cli-1111" in caplog.text
    assert await collected(images) == []
    assert not list(images.glob(".building-*"))


@pytest.mark.parametrize(
    "state", [MachineState.RUNNING, MachineState.STOPPED, MachineState.HIBERNATED]
)
async def test_used_image_stays_with_its_kernel(images: Path, state: MachineState) -> None:
    current_image(images, "kernel-8888")
    image(images, "kernel-7777", days_old=30)
    image(images, "kernel-6666", days_old=60)
    image(images, "kernel-5555", days_old=90)
    machine(images.parent / "one" / "machines", "cli-2222", state, kernel="kernel-5555")
    assert await collected(images) == ["cli-1111", "kernel-6666"]
    shutil.rmtree(images.parent / "one" / "machines")
    assert await collected(images) == ["cli-2222", "kernel-5555"]


async def test_machines_of_another_polydev_count_until_it_is_gone(images: Path) -> None:
    machine(images.parent / "other" / "machines", "cli-1111", MachineState.HIBERNATED)
    image_gc.register_machines_dir(ImageStore(images), images.parent / "other" / "machines")
    assert await collected(images) == ["cli-2222"]
    shutil.rmtree(images.parent / "other")
    assert await collected(images) == ["cli-1111"]
    assert len(list((images / ".users").iterdir())) == 1


async def test_pinned_open_and_young_images_stay(images: Path) -> None:
    store = ImageStore(images)
    store.use(store.named("cli-2222"))
    image(images, "cli-aaaa", days_old=6)
    with (images / "cli-1111" / "root.img").open("rb"):
        assert await collected(images) == ["cli-3333"]
    assert left(images) == {"cli-4444", "cli-2222", "cli-1111", "cli-aaaa"}


async def test_images_of_another_version_stay_without_a_current_one(images: Path) -> None:
    shutil.rmtree(images / "cli-4444")
    assert await collected(images) == []


async def test_unreadable_store_is_logged_and_nothing_is_removed(
    images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (images / "cli-3333" / "manifest.json").write_text("{")
    assert await collected(images) == []
    assert "cannot collect old golden images" in caplog.text
    assert len(list(images.glob("cli-*"))) == 4


async def test_concurrent_removals_remove_an_image_once(images: Path) -> None:
    store = ImageStore(images)
    one = store.named("cli-1111")
    assert await store.remove(one)
    assert not await store.remove(one)
