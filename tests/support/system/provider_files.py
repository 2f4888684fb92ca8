"""Provider data for the browser service, with the layout of a machine."""

from __future__ import annotations

import shutil
from pathlib import Path

from polydev.hostagent.images.recipe import Recipe


def install_providers(folder: Path) -> Path:
    """Copy every `provider.toml` into a folder, with the names of golden images."""
    folder.mkdir(exist_ok=True)
    for inside, path in Recipe().provider_files().items():
        if path.suffix == ".toml":
            shutil.copyfile(path, folder / Path(inside).name)
    return folder
