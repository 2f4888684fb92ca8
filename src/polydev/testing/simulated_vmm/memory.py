"""What a simulated machine has in memory alone: the files below its `/run`, and which boot it is.

`driver.py` makes it, at a boot or of what was saved; `machine.py` has it saved. Below `/run` a real
guest has a filesystem in memory: it is empty after every boot, and full again after a wake. All
functions block.
"""

from __future__ import annotations

import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import Base64Bytes, TypeAdapter, ValidationError

from polydev.shared.errors import SnapshotUnusable
from polydev.testing.simulated_vmm.config_drive import GuestConfig, read_config

_files = TypeAdapter(dict[str, Base64Bytes])


@dataclass(frozen=True, slots=True)
class Memory:
    """Of the machine whose filesystem is the folder `root`."""

    root: Path

    @classmethod
    def fresh(cls, root: Path, config_drive: Path) -> Self:
        """After a boot. Makes the folder if need be. Raises: OSError."""
        memory = cls(root)
        memory._empty()
        memory._config.write_bytes(config_drive.read_bytes())
        (root / "root").mkdir(mode=0o700, exist_ok=True)
        (root / "tmp").mkdir(exist_ok=True)
        (memory._place / "boot_id").write_text(f"{uuid.uuid4()}\n")
        return memory

    @classmethod
    def restored(cls, root: Path, saved: bytes) -> Self:
        """As it was saved. Raises: SnapshotUnusable."""
        memory = cls(root)
        memory._empty()
        try:
            for name, content in _files.validate_json(saved).items():
                place = memory._place / name
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(content)
        except (ValidationError, OSError) as error:
            raise SnapshotUnusable(f"A simulated machine cannot read it: {error}") from error
        return memory

    def saved(self) -> bytes:
        """All of it."""
        paths = (path for path in self._place.rglob("*") if path.is_file())
        return _files.dump_json(
            {str(path.relative_to(self._place)): path.read_bytes() for path in paths}
        )

    def config(self) -> GuestConfig:
        """What the machine was told of itself. Raises: OSError, ValueError, KeyError."""
        return read_config(self._config)

    def renewed(self, config_drive: bytes) -> GuestConfig:
        """What a clone is told of itself. Raises: OSError, ValueError, KeyError."""
        self._config.write_bytes(config_drive)
        return self.config()

    @property
    def _config(self) -> Path:
        return self._place / "config.tar"

    @property
    def _place(self) -> Path:
        return self.root / "run"

    def _empty(self) -> None:
        shutil.rmtree(self._place, ignore_errors=True)
        self._place.mkdir(parents=True)
