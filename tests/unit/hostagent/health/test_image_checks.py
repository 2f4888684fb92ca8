"""Health checks of golden images and disk space."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from polydev.hostagent.health import checks
from polydev.hostagent.images import GoldenImage, ImageKind, ImageStore
from polydev.hostagent.images.manifest import ImageFile, write_manifest
from polydev.hostagent.images.recipe import Recipe, digest_file
from polydev.hostagent.settings import HostSettings
from polydev.shared.domain import Finding


def build(images: Path, kind: ImageKind, recipe: str | None = None) -> Path:
    """Create an image like a build does, with one small file."""
    folder = images / f"{kind}-0123456789abcdef"
    folder.mkdir(parents=True)
    (folder / "root.img").write_bytes(b"an image")
    files = {"root.img": ImageFile(digest_file(folder / "root.img"), 8)}
    recipe = recipe or Recipe().hash(kind)
    made = datetime.now(UTC)
    write_manifest(GoldenImage(kind, "0", recipe, folder, made, files, {}, {"recipe": recipe}))
    return folder


def found(images: Path) -> list[Finding]:
    return list(checks.images(HostSettings(images_dir=images)))


def wrong(images: Path) -> Finding:
    [finding] = [it for it in found(images) if not it.ok]
    return finding


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Create a store with all images."""
    for kind in ImageKind:
        build(tmp_path, kind)
    return tmp_path


def test_intact_images_pass(images: Path) -> None:
    assert [it.ok for it in found(images)] == [True] * len(ImageKind)


def test_missing_image_names_the_build_command(images: Path) -> None:
    shutil.rmtree(images / "cli-0123456789abcdef")
    finding = wrong(images)
    assert finding.message == f"There is no image `cli` in {images}"
    assert finding.hint == "Build it: polydev image build cli"


def test_image_of_an_earlier_recipe_is_out_of_date(images: Path) -> None:
    shutil.rmtree(images / "browser-0123456789abcdef")
    build(images, ImageKind.BROWSER, "of last month")
    finding = wrong(images)
    assert "browser-0123456789abcdef" in finding.message
    assert "out of date: the recipe has changed since" in finding.message
    assert "polydev image build browser" in finding.hint


@pytest.mark.parametrize(
    ("content", "problem"), [(b"an im", "5 bytes instead of 8"), (None, "missing")]
)
def test_damaged_image_is_named(images: Path, content: bytes | None, problem: str) -> None:
    file = images / "kernel-0123456789abcdef" / "root.img"
    file.unlink() if content is None else file.write_bytes(content)
    finding = wrong(images)
    assert "kernel-0123456789abcdef is damaged" in finding.message
    assert problem in finding.message
    assert "polydev image build kernel" in finding.hint


def test_invalid_manifest_is_named(images: Path) -> None:
    (images / "cli-0123456789abcdef" / "manifest.json").write_text("{")
    finding = wrong(images)
    assert "manifest.json is not a valid image manifest" in finding.message
    assert "Remove" in finding.hint


def test_simulated_machines_need_no_images(tmp_path: Path) -> None:
    settings = HostSettings(images_dir=tmp_path, driver="simulated")
    assert [it.ok for it in checks.images(settings)] == [True]


def test_pinned_image_passes_and_is_reported(images: Path) -> None:
    chosen = images / "cli-00aa"
    shutil.copytree(images / "cli-0123456789abcdef", chosen)
    store = ImageStore(images)
    store.use(store.named("cli-00aa"))
    [finding] = [it for it in found(images) if "cli-00aa" in it.message]
    assert finding.ok
    assert "`polydev image use`" in finding.message
    shutil.rmtree(chosen)
    assert "polydev image use --newest cli" in wrong(images).hint
