"""`polydev image use`, `rollback` and `list` select the image of the next boot."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from image_stores import current_image, image, machine
from typer.testing import CliRunner

from polydev.cli.main import app
from polydev.hostagent.images import ImageStore
from polydev.shared.domain import MachineState
from polydev.shared.errors import BadRequest, ImageDamaged, MissingImage

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="images are root's")


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with a browser image and three CLI images, the newest one current."""
    monkeypatch.setenv("POLYDEV_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("POLYDEV_IMAGES_DIR", str(tmp_path / "images"))
    images = tmp_path / "images"
    image(images, "cli-1111", days_old=60)
    image(images, "cli-2222", days_old=30)
    current_image(images, "cli-3333", days_old=1)
    current_image(images, "browser-4444", days_old=1)
    return images


def answer(*message: str) -> Any:
    ended = CliRunner().invoke(app, ["image", *message, "--json"])
    if ended.exception is not None and not isinstance(ended.exception, SystemExit):
        raise ended.exception
    assert ended.exit_code == 0, ended.output
    return json.loads(ended.stdout.splitlines()[-1])


def next_cli(images: Path) -> str:
    return ImageStore(images).require("cli").name


def test_pinned_image_is_used_over_newer_ones(images: Path) -> None:
    assert next_cli(images) == "cli-3333"
    assert answer("use", "cli-1111") == {"pinned": {"cli": "cli-1111"}}
    assert next_cli(images) == "cli-1111"
    assert ImageStore(images).require("browser").name == "browser-4444"
    found = ImageStore(images).find("cli")
    assert found is not None
    assert found.name == "cli-3333", "a build would recreate it"
    current_image(images, "cli-5555")
    assert next_cli(images) == "cli-1111"
    assert answer("use", "--newest", "browser") == {"pinned": {"cli": "cli-1111"}}
    assert answer("use", "--newest") == {"pinned": {}}
    assert next_cli(images) == "cli-5555"


def test_each_rollback_goes_one_image_back(images: Path) -> None:
    assert answer("rollback", "cli") == {"pinned": {"cli": "cli-2222"}}
    assert answer("rollback") == {"pinned": {"cli": "cli-1111"}}
    with pytest.raises(MissingImage, match="no previous image of: cli"):
        answer("rollback", "cli")
    with pytest.raises(MissingImage, match="no previous image of: browser"):
        answer("rollback", "cli", "browser")
    assert next_cli(images) == "cli-1111"


def test_unusable_image_is_refused(images: Path) -> None:
    (images / "cli-2222" / "root.img").unlink()
    with pytest.raises(ImageDamaged):
        answer("use", "cli-2222")
    with pytest.raises(MissingImage):
        answer("use", "cli-0000")
    with pytest.raises(BadRequest):
        answer("use")
    with pytest.raises(BadRequest, match="cli-2222"):
        answer("use", "--newest", "cli-2222")
    assert next_cli(images) == "cli-3333"


def test_missing_pinned_image_has_a_hint(images: Path) -> None:
    answer("use", "cli-1111")
    (images / "cli-1111").rename(images.parent / "elsewhere")
    with pytest.raises(MissingImage, match="cli-1111") as refused:
        next_cli(images)
    assert "polydev image use --newest cli" in refused.value.hint
    (images / ".use-cli").write_text("../../etc")
    with pytest.raises(ImageDamaged) as damaged:
        next_cli(images)
    assert "polydev image use --newest cli" in damaged.value.hint
    answer("use", "--newest", "cli")
    assert next_cli(images) == "cli-3333"


def test_list_shows_next_images_and_their_machines(images: Path) -> None:
    machine(images.parent / "machines", "cli-1111", MachineState.HIBERNATED)
    machine(images.parent / "machines", "cli-2222")
    machine(images.parent / "machines", "cli-2222", MachineState.STOPPED)
    answer("use", "cli-2222")
    rows = {row["image"]: row for row in answer("list")}
    seen = {
        name: (row["current"], row["next"], row["pinned"], row["machines"])
        for name, row in rows.items()
    }
    assert seen == {
        "browser-4444": (True, True, False, 0),
        "cli-3333": (True, False, False, 0),
        "cli-2222": (False, True, True, 2),
        "cli-1111": (False, False, False, 1),
    }


def test_pinned_image_is_never_pruned(images: Path) -> None:
    answer("use", "cli-1111")
    assert [row["image"] for row in answer("prune")["removed"]] == ["cli-2222"]
    assert next_cli(images) == "cli-1111"
    assert (images / "cli-3333").exists(), "the current image stays available"
