"""Provider data for the browser service, laid out as in a machine."""

from __future__ import annotations

import shutil
from pathlib import Path

from polydev.hostagent.images.recipe import Recipe


def install_providers(folder: Path) -> Path:
    """Copy every `provider.toml` into a folder, as golden images hold them."""
    folder.mkdir(exist_ok=True)
    for inside, path in Recipe().provider_files().items():
        if path.suffix == ".toml":
            shutil.copyfile(path, folder / Path(inside).name)
    return folder
