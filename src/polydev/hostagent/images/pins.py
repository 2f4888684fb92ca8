"""Which built image of a kind new starts take, when a person has said so: `.use-<kind>`.

`store.py` reads and writes them. A pin is the name of an image in a small file of the image store,
there whole or not at all. It knows nothing of recipes or machines.
"""

from __future__ import annotations

import re
from pathlib import Path

from polydev.hostagent.images.manifest import ImageKind
from polydev.shared.atomic_files import sync_folder, write_whole
from polydev.shared.errors import ImageDamaged

_LONGEST = 200


def read(root: Path, kind: ImageKind) -> str | None:
    """The name that a kind is pinned to; None if it is not. Raises: ImageDamaged."""
    path = _path(root, kind)
    try:
        with path.open("rb") as file:
            name = file.read(_LONGEST).decode("ascii", "replace").strip()
    except FileNotFoundError:
        return None
    if not re.fullmatch(rf"{kind}-[0-9a-f]+", name):
        raise ImageDamaged(
            f"{path} names no image of the kind {kind}",
            hint=f"Say again which is to be used: polydev image use --newest {kind}",
        )
    return name


def write(root: Path, kind: ImageKind, name: str) -> None:
    """Pin a kind to an image. Everybody may read which: doctor does."""
    write_whole(_path(root, kind), f"{name}\n".encode(), mode=0o644)


def lift(root: Path, kind: ImageKind) -> bool:
    """Forget a pin. False: there was none."""
    try:
        _path(root, kind).unlink()
    except FileNotFoundError:
        return False
    sync_folder(root)
    return True


def _path(root: Path, kind: ImageKind) -> Path:
    return root / f".use-{kind}"
