"""Pins: files `.use-<kind>` that name the image for new machines of a kind.

They are replaced atomically.
"""

from __future__ import annotations

import re
from pathlib import Path

from polydev.hostagent.images.manifest import ImageKind
from polydev.shared.atomic_files import sync_folder, write_whole
from polydev.shared.errors import ImageDamaged
from polydev.shared.hints import Hint

_MAX_BYTES = 200


def read(root: Path, kind: ImageKind) -> str | None:
    """Return the image that a kind is pinned to, or None. Raises: ImageDamaged."""
    path = _path(root, kind)
    try:
        with path.open("rb") as file:
            name = file.read(_MAX_BYTES).decode("ascii", "replace").strip()
    except FileNotFoundError:
        return None
    if not re.fullmatch(rf"{kind}-[0-9a-f]+", name):
        raise ImageDamaged(
            f"{path} does not name an image of kind {kind}",
            hint=Hint.UNPIN_IMAGE.text(kind=kind),
        )
    return name


def write(root: Path, kind: ImageKind, name: str) -> None:
    """Pin a kind to an image. World-readable: doctor reads it."""
    write_whole(_path(root, kind), f"{name}\n".encode(), mode=0o644)


def remove(root: Path, kind: ImageKind) -> bool:
    """Remove a pin; False if there was none."""
    try:
        _path(root, kind).unlink()
    except FileNotFoundError:
        return False
    sync_folder(root)
    return True


def _path(root: Path, kind: ImageKind) -> Path:
    return root / f".use-{kind}"
