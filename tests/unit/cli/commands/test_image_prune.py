"""`polydev image prune` removes old images, but none that is current or in use."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from image_stores import current_image, image, machine
from typer.testing import CliRunner

from polydev.cli.main import app

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root sees who holds an image open")


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Folders of images and machines."""
    monkeypatch.setenv("POLYDEV_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("POLYDEV_IMAGES_DIR", str(tmp_path / "images"))
    (tmp_path / "machines").mkdir()
    return tmp_path / "images", tmp_path / "machines"


def pruned(*message: str) -> dict[str, object]:
    ended = CliRunner().invoke(app, ["image", "prune", "--json", *message])
    assert ended.exit_code == 0, ended.output
    answer: dict[str, object] = json.loads(ended.stdout.splitlines()[-1])
    return answer


def test_only_old_unused_images_are_removed(folders: tuple[Path, Path]) -> None:
    images, machines = folders
    current = current_image(images, "cli-1111")
    old = image(images, "cli-2222")
    recorded = image(images, "cli-3333")
    opened = image(images, "browser-4444")
    machine(machines, "cli-3333")
    with (opened / "root.img").open("rb"):
        assert pruned("--dry-run")["dry_run"] is True
        assert old.exists(), "a dry run removes nothing"
        answer = pruned()
    assert [row["image"] for row in answer["removed"]] == ["cli-2222"]  # type: ignore[attr-defined]
    assert answer["in_use"] == ["browser-4444", "cli-3333"]
    assert not old.exists()
    assert current.exists()
    assert recorded.exists()
    assert opened.exists()
    assert [row["image"] for row in pruned()["removed"]] == ["browser-4444"]  # type: ignore[attr-defined]
