"""Templates on disk: memory, disk and keys of a saved machine.

A template is a folder that is created under another name and renamed, so that an interruption
leaves nothing that looks complete. Its memory is sealed with the host's key for saved memory, and
is useless after the host restarts. All methods block.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from polydev.hostagent.machines.record import MachineFolder
from polydev.hostagent.system.disk_full import raising_disk_full
from polydev.shared.atomic_files import sync_folder, write_whole
from polydev.shared.domain import MachineSize

log = logging.getLogger("polydev.hostagent")

_WANTED = "wanted.json"
_DESCRIPTION = "template.json"

_shape = TypeAdapter(MachineSize)


class Description(BaseModel):
    """`template.json`: everything that a clone must match."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    shape: MachineSize
    image: str
    kernel: str
    fingerprint: str
    key_id: str


@dataclass(frozen=True, slots=True)
class Template:
    """A saved machine, in a folder like a machine's own."""

    folder: MachineFolder
    described: Description

    def is_same(self, other: Template) -> bool:
        return self.folder.path == other.folder.path

    @property
    def memory(self) -> Path:
        return self.folder.path / "memory"

    @property
    def size(self) -> int:
        """Bytes on disk; 0 once it is removed. Blocks."""
        with suppress(OSError):
            return sum(path.stat().st_blocks for path in (self.memory, self.folder.disk)) * 512
        return 0


class Templates:
    """The templates of one host."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._requests = threading.Lock()

    def all(self) -> list[Template]:
        """List the templates, newest first."""
        if not self.root.is_dir():
            return []
        names = [path.name for path in self.root.iterdir() if path.is_dir() and path.name[0] != "."]
        folders = [MachineFolder(self.root, name) for name in names]
        found = [it for folder in folders if (it := _read(folder)) is not None]
        return [template for _, template in sorted(found, key=lambda it: it[0], reverse=True)]

    @contextmanager
    def draft(self) -> Iterator[MachineFolder]:
        """Create a folder for a new template; it is removed unless `finish` takes it."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = MachineFolder(self.root, f".new-{secrets.token_hex(8)}")
        folder.path.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder.path, ignore_errors=True)

    def finish(self, draft: MachineFolder, described: Description) -> Template:
        """Make a draft the only template. Raises DiskFull."""
        with raising_disk_full(self.root):
            _sync(draft.disk)
            write_whole(draft.path / _DESCRIPTION, described.model_dump_json().encode())
            outdated = self.all()
            finished = MachineFolder(self.root, secrets.token_hex(8))
            draft.path.rename(finished.path)
            sync_folder(self.root)
        for template in outdated:
            self.discard(template)
        return Template(finished, described)

    def discard(self, template: Template) -> None:
        """Remove a template atomically."""
        removed = self.root / f".gone-{secrets.token_hex(8)}"
        with suppress(FileNotFoundError):
            template.folder.path.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)

    def clean(self, key_id: str | None) -> None:
        """Remove drafts of an earlier agent, and templates of another key."""
        if not self.root.is_dir():
            return
        usable = {it.folder.path for it in self.all() if it.described.key_id == key_id}
        for path in self.root.iterdir():
            if path.is_dir() and path not in usable:
                log.info("removing %s, an unusable template of warm browser machines", path)
                shutil.rmtree(path, ignore_errors=True)

    def request(self, shape: MachineSize) -> None:
        """Store the shape that was requested last, for the next template."""
        with self._requests:
            if shape != self.requested():
                self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
                write_whole(self.root / _WANTED, _shape.dump_json(shape), durable=False)

    def requested(self) -> MachineSize | None:
        """Return the shape that was requested last; None if none ever was."""
        try:
            return _shape.validate_json((self.root / _WANTED).read_bytes())
        except (OSError, ValidationError):
            return None


def _read(folder: MachineFolder) -> tuple[int, Template] | None:
    """Read a template and its time; None if it is unusable or gone."""
    try:
        described = Description.model_validate_json((folder.path / _DESCRIPTION).read_bytes())
        return folder.path.stat().st_mtime_ns, Template(folder, described)
    except (OSError, ValidationError):
        return None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
