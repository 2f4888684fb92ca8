"""`polydev image prune` removes old images, but none that is current or in use."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from polydev.cli.main import app
from polydev.domain import MachineKind, MachineState, new_vm_id
from polydev.hostd.images import GoldenImage, ImageKind
from polydev.hostd.images.model import ImageFile, write_manifest
from polydev.hostd.images.recipe import Recipe, digest_file
from polydev.hostd.record import MachineFolder, MachineRecord

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root sees who holds an image open")


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The images' folder and the machines'."""
    monkeypatch.setenv("POLYDEV_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("POLYDEV_IMAGES_DIR", str(tmp_path / "images"))
    (tmp_path / "machines").mkdir()
    return tmp_path / "images", tmp_path / "machines"


def image(images: Path, name: str, recipe: str) -> Path:
    folder = images / name
    folder.mkdir(parents=True)
    root = folder / "root.img"
    root.write_bytes(name.encode())
    files = {"root.img": ImageFile(digest_file(root), root.stat().st_size)}
    kind, made = ImageKind(name.partition("-")[0]), datetime.now(UTC)
    write_manifest(GoldenImage(kind, name, recipe, folder, made, files, {}, {"recipe": recipe}))
    return folder


def machine(machines: Path, image_name: str) -> None:
    vm_id = new_vm_id()
    record = MachineRecord(
        vm_id=vm_id,
        machine_kind=MachineKind.CLI,
        memory_mib=256,
        vcpus=1,
        disk_mib=256,
        labels={},
        state=MachineState.RUNNING,
        created_at=datetime.now(UTC),
        uid=1,
        image=image_name,
    )
    MachineFolder(machines, vm_id).write(record)


def pruned(*words: str) -> dict[str, object]:
    ended = CliRunner().invoke(app, ["image", "prune", "--json", *words])
    assert ended.exit_code == 0, ended.output
    answer: dict[str, object] = json.loads(ended.stdout.splitlines()[-1])
    return answer


def test_what_is_old_and_unused_goes_and_nothing_else(places: tuple[Path, Path]) -> None:
    images, machines = places
    current = image(images, "cli-1111", Recipe().hash(ImageKind.CLI))
    old = image(images, "cli-2222", "of last month")
    recorded = image(images, "cli-3333", "of last month")
    opened = image(images, "browser-4444", "of last month")
    machine(machines, "cli-3333")
    with (opened / "root.img").open("rb"):
        assert pruned("--dry-run")["dry_run"] is True
        assert old.exists(), "it was only to be said"
        answer = pruned()
    assert [row["image"] for row in answer["removed"]] == ["cli-2222"]  # type: ignore[attr-defined]
    assert answer["in_use"] == ["browser-4444", "cli-3333"]
    assert not old.exists()
    assert current.exists()
    assert recorded.exists()
    assert opened.exists()
    assert [row["image"] for row in pruned()["removed"]] == ["browser-4444"]  # type: ignore[attr-defined]
