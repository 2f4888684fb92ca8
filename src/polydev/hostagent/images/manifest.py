"""Types of this package, and the manifest that makes a folder a golden image.

`manifest.json` is written last: a folder without one is not an image (docs/machines.md).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from polydev.shared.errors import ImageDamaged

MANIFEST = "manifest.json"
_REBUILD = "build it again: polydev image build {kind}"


class ImageKind(StrEnum):
    """Content of an image: the guest kernel, or the root image of a kind of machine."""

    KERNEL = "kernel"
    CLI = "cli"
    BROWSER = "browser"


@dataclass(frozen=True, slots=True)
class BuildProgress:
    """Progress of a build; `fraction` is the completed part of the stage, if known."""

    kind: ImageKind
    stage: str
    fraction: float | None
    elapsed_s: float


ProgressSink = Callable[[BuildProgress], None]


@dataclass(frozen=True, slots=True)
class Ingredients:
    """Inputs of a build: versions to display, and the versions of all packages."""

    versions: Mapping[str, str]
    packages: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ImageFile:
    """Checksum and size of an image's file."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class GoldenImage:
    """A finished build; `hash` covers all inputs, `recipe` only those of this repository."""

    kind: ImageKind
    hash: str
    recipe: str
    folder: Path
    created_at: datetime
    files: Mapping[str, ImageFile]
    versions: Mapping[str, str]
    inputs: Mapping[str, Any] = field(repr=False)

    @property
    def name(self) -> str:
        """`<kind>-<hash16>`: the folder's name."""
        return self.folder.name

    @property
    def root_image(self) -> Path:
        """The root filesystem of a `cli` or `browser` image."""
        return self.folder / "root.img"

    @property
    def kernel(self) -> Path:
        """The uncompressed kernel of a `kernel` image."""
        return self.folder / "vmlinux"

    @property
    def initramfs(self) -> Path:
        """The initramfs of a `kernel` image."""
        return self.folder / "initramfs.cpio"

    @property
    def size(self) -> int:
        """Bytes of all files, holes included."""
        return sum(file.size for file in self.files.values())


def read_image(folder: Path) -> GoldenImage | None:
    """Read the image in a folder; None if no build finished there.

    Raises: ImageDamaged for an invalid manifest.
    """
    try:
        text = (folder / MANIFEST).read_text()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        raw = json.loads(text)
        return GoldenImage(
            kind=ImageKind(raw["kind"]),
            hash=str(raw["hash"]),
            recipe=str(raw["inputs"]["recipe"]),
            folder=folder,
            created_at=datetime.fromisoformat(raw["created_at"]),
            files={
                name: ImageFile(str(file["sha256"]), int(file["size"]))
                for name, file in raw["files"].items()
            },
            versions=dict(raw["versions"]),
            inputs=dict(raw["inputs"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ImageDamaged(
            f"{folder / MANIFEST} is not a valid image manifest",
            hint=f"Remove {folder}, then " + _REBUILD.format(kind=folder.name.partition("-")[0]),
        ) from error


def write_manifest(image: GoldenImage) -> None:
    """Write an image's manifest into its folder."""
    raw = {
        "kind": image.kind,
        "hash": image.hash,
        "created_at": image.created_at.isoformat(),
        "files": {
            name: {"sha256": file.sha256, "size": file.size} for name, file in image.files.items()
        },
        "inputs": dict(image.inputs),
        "versions": dict(image.versions),
    }
    (image.folder / MANIFEST).write_text(json.dumps(raw, indent=2, sort_keys=True) + "\n")


def damaged(image: GoldenImage, what: str) -> ImageDamaged:
    """Return the error for an image that does not match its manifest."""
    return ImageDamaged(
        f"Golden image {image.name} is damaged: {what}",
        hint=f"Remove {image.folder}, then " + _REBUILD.format(kind=image.kind),
    )
