"""Root of the system that is set up: this machine's, or a folder (POLYDEV_SETUP_ROOT).

All resources create their files, links and folders here: atomically, and never through a foreign
symlink. What did not exist before is recorded, so that a removal deletes only that. The record is
written first, so that an interrupted creation can be reverted too. Methods block.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from polydev.shared.atomic_files import sync_folder, write_whole
from polydev.shared.errors import AlreadyRunning, Failed

CONFIG = "/etc/polydev"
LIBRARY = "/usr/local/lib/polydev"
_RECORD = f"{CONFIG}/setup.json"


@dataclass(frozen=True, slots=True)
class Shape:
    """Mode and owner of a file or folder."""

    mode: int
    uid: int = 0
    gid: int = 0


class TargetRoot:
    """Root folder of the system that is set up."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root.resolve()

    @property
    def is_this_machine(self) -> bool:
        """True if kernel and systemd of this machine belong to this root."""
        return self.root == Path("/")

    def at(self, path: str | Path) -> Path:
        """Real path of an absolute path of the host."""
        return self.root / str(path).lstrip("/")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock of this root. Raises AlreadyRunning, Failed.

        The kernel releases the lock in any case, because it is a lock on the folder itself.
        """
        try:
            descriptor = os.open(self.at("/etc"), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise Failed(
                f"{self.root} is not the root of a system: {self.at('/etc')}: {error.strerror}"
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise AlreadyRunning(
                "Another `polydev host setup` is running", hint="Wait for it to finish"
            ) from None
        try:
            yield
        finally:
            os.close(descriptor)

    def folder(self, path: str | Path, shape: Shape) -> None:
        """Create or correct a folder and its parents."""
        missing = [above for above in Path(path).parents if not self.at(above).is_dir()]
        for above in reversed(missing):
            self._new_folder(above, Shape(0o755))
        if not self.at(path).is_dir():
            self._new_folder(Path(path), shape)
        _apply_shape(self.at(path), shape)

    def file(self, path: str | Path, content: bytes, shape: Shape) -> None:
        """Write a file atomically."""
        self.folder_of(path)
        if not self.at(path).exists():
            self.record(f"file {path}")
        write_whole(self.at(path), content, mode=0o600)
        _apply_shape(self.at(path), shape)

    def link(self, path: str | Path, target: str) -> None:
        """Create or replace a symbolic link atomically."""
        self.folder_of(path)
        temporary = self.at(path).with_name(f".{Path(path).name}.new")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        temporary.replace(self.at(path))
        sync_folder(temporary.parent)

    def folder_of(self, path: str | Path) -> None:
        """Create the parent folder of a path if it is missing."""
        above = Path(path).parent
        if not self.at(above).is_dir():
            self.folder(above, Shape(0o755))

    def is_file(self, path: str | Path, content: bytes | None, shape: Shape) -> bool:
        """Check that a file has this shape, and this content unless None."""
        try:
            return _has(self.at(path), shape, stat.S_IFREG) and (
                content is None or self.at(path).read_bytes() == content
            )
        except FileNotFoundError:
            return False

    def is_folder(self, path: str | Path, shape: Shape) -> bool:
        """Check that a folder has this shape."""
        return _has(self.at(path), shape, stat.S_IFDIR)

    def is_link(self, path: str | Path, target: str) -> bool:
        """Check that a link points to `target`."""
        with suppress(OSError):
            return str(self.at(path).readlink()) == target
        return False

    def remove(self, path: str | Path) -> None:
        """Remove a file, link or folder, and the parents that were created for it."""
        there = self.at(path)
        for temporary in (there.with_name(f".{there.name}.new"), there):
            if temporary.is_dir() and not temporary.is_symlink():
                shutil.rmtree(temporary)
            else:
                with suppress(FileNotFoundError, NotADirectoryError):
                    temporary.unlink()
        self.forget(f"file {path}", f"folder {path}")
        self.remove_empty(Path(path).parent)

    def remove_empty(self, folder: str | Path) -> bool:
        """Remove a folder that setup created, and its parents, if they are empty.

        Returns False if the folder is not empty.
        """
        for path in (Path(folder), *Path(folder).parents):
            if not self.was_created(f"folder {path}"):
                if self.at(path).exists():
                    break
                continue  # an interrupted removal came this far
            try:
                self.at(path).rmdir()
            except FileNotFoundError:
                pass
            except OSError:
                return False
            self.forget(f"folder {path}")
        return True

    def record(self, what: str) -> None:
        """Record that something is about to be created."""
        known = self._read_record()
        if what not in known:
            self._write_record({*known, what})

    def was_created(self, what: str) -> bool:
        """Check whether setup created it."""
        return what in self._read_record()

    def forget(self, *what: str) -> None:
        """Remove entries from the record. An empty record is deleted, with its folder."""
        known = self._read_record()
        if not known or not known.isdisjoint(what):
            self._write_record(known.difference(what))

    def _read_record(self) -> frozenset[str]:
        try:
            return frozenset(map(str, json.loads(self.at(_RECORD).read_bytes())["made"]))
        except FileNotFoundError:
            return frozenset()
        except (ValueError, KeyError, TypeError):
            raise Failed(
                f"Cannot read {self.at(_RECORD)}, the record of what the setup created",
                hint="Remove it, then run `polydev host setup` again",
            ) from None

    def _write_record(self, known: frozenset[str] | set[str]) -> None:
        record = self.at(_RECORD)
        if known - {f"folder {CONFIG}"}:
            record.parent.mkdir(mode=0o755, exist_ok=True)
            write_whole(record, json.dumps({"made": sorted(known)}, indent=1).encode() + b"\n")
            return
        record.unlink(missing_ok=True)
        with suppress(OSError):
            record.parent.rmdir()

    def _new_folder(self, path: Path, shape: Shape) -> None:
        self.record(f"folder {path}")
        self.at(path).mkdir(mode=shape.mode, exist_ok=True)


def _apply_shape(path: Path, shape: Shape) -> None:
    # O_NOFOLLOW: never change the target of a link.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchown(descriptor, shape.uid, shape.gid)
        os.fchmod(descriptor, shape.mode)
    finally:
        os.close(descriptor)


def _has(path: Path, shape: Shape, kind: int) -> bool:
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    wanted = (kind, shape.mode, shape.uid, shape.gid)
    return (
        stat.S_IFMT(found.st_mode),
        stat.S_IMODE(found.st_mode),
        found.st_uid,
        found.st_gid,
    ) == wanted
