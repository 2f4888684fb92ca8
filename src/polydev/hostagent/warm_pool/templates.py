"""Templates of warm machines, on disk: memory, disk and keys of a machine that was saved.

`making.py` writes one, `cloning.py` reads it. A template is a folder; it is made under another name
and renamed, so that one that was cut leaves nothing that looks finished. Its memory is sealed with
the host's key to saved memory and is of no use after a restart of the host. All methods block.
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
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from polydev.hostagent.machines.record import MachineFolder, MachineRecord
from polydev.hostagent.system.disk_full import room_in
from polydev.shared.atomic_files import sync_folder, write_whole
from polydev.shared.host_protocol import CreateMachine

log = logging.getLogger("polydev.hostagent")

_WANTED = "wanted.json"
_DESCRIPTION = "template.json"


class Shape(BaseModel):
    """How large the browser machines are that are asked for."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    memory_mib: int
    vcpus: int
    disk_mib: int

    @classmethod
    def of(cls, record: MachineRecord | CreateMachine) -> Self:
        return cls(memory_mib=record.memory_mib, vcpus=record.vcpus, disk_mib=record.disk_mib)


class Description(BaseModel):
    """`template.json`: what a clone must be like."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    shape: Shape
    image: str
    kernel: str
    fingerprint: str
    key_id: str


@dataclass(frozen=True, slots=True)
class Template:
    """A folder with a machine's disk and keys, where a machine's own folder has them too."""

    folder: MachineFolder
    described: Description

    def is_same(self, other: Template) -> bool:
        return self.folder.path == other.folder.path

    @property
    def memory(self) -> Path:
        return self.folder.path / "memory"

    @property
    def size(self) -> int:
        """Bytes on disk; 0 once it is gone. Blocks."""
        with suppress(OSError):
            return sum(path.stat().st_blocks for path in (self.memory, self.folder.disk)) * 512
        return 0


class Templates:
    """The templates of one host."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._wanting = threading.Lock()

    def all(self) -> list[Template]:
        """What there is, newest first."""
        if not self.root.is_dir():
            return []
        names = [path.name for path in self.root.iterdir() if path.is_dir() and path.name[0] != "."]
        folders = [MachineFolder(self.root, name) for name in names]
        found = [made for folder in folders if (made := _read(folder)) is not None]
        return [made for _, made in sorted(found, key=lambda it: it[0], reverse=True)]

    @contextmanager
    def draft(self) -> Iterator[MachineFolder]:
        """A folder to make a template in; it is gone afterwards unless `finish` had it."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = MachineFolder(self.root, f".new-{secrets.token_hex(8)}")
        folder.path.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder.path, ignore_errors=True)

    def finish(self, draft: MachineFolder, described: Description) -> Template:
        """Make a draft a template, the only one. Raises: DiskFull."""
        with room_in(self.root):
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
        """Throw a template away, whole: half of one is never found."""
        gone = self.root / f".gone-{secrets.token_hex(8)}"
        with suppress(FileNotFoundError):
            template.folder.path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def clean(self, key_id: str | None) -> None:
        """Remove what an earlier agent left half made, and what no key opens (None: everything)."""
        if not self.root.is_dir():
            return
        usable = {it.folder.path for it in self.all() if it.described.key_id == key_id}
        for path in self.root.iterdir():
            if path.is_dir() and path not in usable:
                log.info("removing %s, which is no template of warm machines (any more)", path)
                shutil.rmtree(path, ignore_errors=True)

    def want(self, shape: Shape) -> None:
        """Remember what was asked for last: what the next template is for."""
        with self._wanting:
            if shape != self.wanted():
                self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
                write_whole(self.root / _WANTED, shape.model_dump_json().encode(), durable=False)

    def wanted(self) -> Shape | None:
        """None when no browser machine was ever asked for."""
        try:
            return Shape.model_validate_json((self.root / _WANTED).read_bytes())
        except (OSError, ValidationError):
            return None


def _read(folder: MachineFolder) -> tuple[int, Template] | None:
    """When it was made, and the template; None if it is none (any more)."""
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
