"""A simulated machine's memory: the files in its `/run`, and its boot id.

A real guest's `/run` is a tmpfs: empty after a boot, and full again after a resume. All functions
block.
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
    """The memory of the machine whose filesystem is `root`."""

    root: Path

    @classmethod
    def fresh(cls, root: Path, config_drive: Path) -> Self:
        """Create the memory of a machine that has just booted. Raises: OSError."""
        memory = cls(root)
        memory._empty()
        memory._config.write_bytes(config_drive.read_bytes())
        (root / "root").mkdir(mode=0o700, exist_ok=True)
        (root / "tmp").mkdir(exist_ok=True)
        (memory._folder / "boot_id").write_text(f"{uuid.uuid4()}\n")
        return memory

    @classmethod
    def restored(cls, root: Path, saved: bytes) -> Self:
        """Restore saved memory. Raises: SnapshotUnusable."""
        memory = cls(root)
        memory._empty()
        try:
            for name, content in _files.validate_json(saved).items():
                path = memory._folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        except (ValidationError, OSError) as error:
            raise SnapshotUnusable(f"The simulated snapshot is invalid: {error}") from error
        return memory

    def saved(self) -> bytes:
        """Serialise all of it."""
        paths = (path for path in self._folder.rglob("*") if path.is_file())
        return _files.dump_json(
            {str(path.relative_to(self._folder)): path.read_bytes() for path in paths}
        )

    def config(self) -> GuestConfig:
        """Read the machine's configuration. Raises: OSError, ValueError, KeyError."""
        return read_config(self._config)

    def renewed(self, config_drive: bytes) -> GuestConfig:
        """Replace a clone's configuration. Raises: OSError, ValueError, KeyError."""
        self._config.write_bytes(config_drive)
        return self.config()

    @property
    def _config(self) -> Path:
        return self._folder / "config.tar"

    @property
    def _folder(self) -> Path:
        return self.root / "run"

    def _empty(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
