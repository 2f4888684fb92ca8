"""Files of image stores and machines, without real images."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from polydev.hostagent.images import GoldenImage, ImageKind
from polydev.hostagent.images.manifest import ImageFile, write_manifest
from polydev.hostagent.images.recipe import Recipe, digest_file
from polydev.hostagent.machines.record import MachineFolder, MachineRecord
from polydev.shared.domain import MachineKind, MachineState, new_vm_id

LAST_MONTH = "of last month"


def image(images: Path, name: str, recipe: str = LAST_MONTH, days_old: float = 0) -> Path:
    """Create an image of one small file, with the manifest of a build."""
    folder = images / name
    folder.mkdir(parents=True)
    root = folder / "root.img"
    root.write_bytes(name.encode())
    files = {"root.img": ImageFile(digest_file(root), root.stat().st_size)}
    made = datetime.now(UTC) - timedelta(days=days_old)
    write_manifest(
        GoldenImage(kind_of(name), name, recipe, folder, made, files, {}, {"recipe": recipe})
    )
    return folder


def current_image(images: Path, name: str, days_old: float = 0) -> Path:
    """Create an image of the current recipe."""
    return image(images, name, Recipe().hash(kind_of(name)), days_old)


def machine(
    machines: Path, image_name: str, state: MachineState = MachineState.RUNNING, kernel: str = ""
) -> None:
    """Write a machine's record."""
    vm_id = new_vm_id()
    record = MachineRecord(
        vm_id=vm_id,
        machine_kind=MachineKind.CLI,
        memory_mib=256,
        vcpus=1,
        disk_mib=256,
        labels={},
        state=state,
        created_at=datetime.now(UTC),
        uid=1,
        image=image_name,
        kernel=kernel,
    )
    machines.mkdir(parents=True, exist_ok=True)
    MachineFolder(machines, vm_id).write(record)


def kind_of(name: str) -> ImageKind:
    return ImageKind(name.partition("-")[0])
