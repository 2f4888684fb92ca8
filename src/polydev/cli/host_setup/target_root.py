"""Where a host is set up: this machine, or a folder that looks like one (`--root`).

Every item makes its files, links and folders through here: whole or not at all, never through a
link that somebody left, and remembered when they were not there before, so that taking them back
removes what was made and nothing else. What is remembered is written down before it is made: what
is killed between the two is taken back too. Blocking.
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
_MEMORY = f"{CONFIG}/setup.json"


@dataclass(frozen=True, slots=True)
class Shape:
    """Mode and owner of a file or folder."""

    mode: int
    uid: int = 0
    gid: int = 0


class TargetRoot:
    """The root that everything is done below."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root.resolve()

    @property
    def is_this_machine(self) -> bool:
        """Whether what the kernel and systemd say here is about this place."""
        return self.root == Path("/")

    def at(self, path: str | Path) -> Path:
        """Where an absolute path of the host is."""
        return self.root / str(path).lstrip("/")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only set-up of this place. Raises AlreadyRunning, Failed.

        The lock is the kernel's, on the folder itself: nothing is left behind, however this ends.
        """
        try:
            descriptor = os.open(self.at("/etc"), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise Failed(
                f"{self.root} is no system that could be set up: {self.at('/etc')}: "
                f"{error.strerror}"
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise AlreadyRunning(
                "Another `polydev host setup` is at work", hint="Let it end"
            ) from None
        try:
            yield
        finally:
            os.close(descriptor)

    def folder(self, path: str | Path, shape: Shape) -> None:
        """A folder of that shape; those above it are made as they are needed."""
        missing = [above for above in Path(path).parents if not self.at(above).is_dir()]
        for above in reversed(missing):
            self._new_folder(above, Shape(0o755))
        if not self.at(path).is_dir():
            self._new_folder(Path(path), shape)
        _apply_shape(self.at(path), shape)

    def file(self, path: str | Path, content: bytes, shape: Shape) -> None:
        """A file with that content, replaced at once."""
        self.folder_of(path)
        if not self.at(path).exists():
            self.record(f"file {path}")
        write_whole(self.at(path), content, mode=0o600)
        _apply_shape(self.at(path), shape)

    def link(self, path: str | Path, target: str) -> None:
        """A symbolic link, replaced at once."""
        self.folder_of(path)
        aside = self.at(path).with_name(f".{Path(path).name}.new")
        aside.unlink(missing_ok=True)
        aside.symlink_to(target)
        aside.replace(self.at(path))
        sync_folder(aside.parent)

    def folder_of(self, path: str | Path) -> None:
        """The folder that something lies in, made if it is missing."""
        above = Path(path).parent
        if not self.at(above).is_dir():
            self.folder(above, Shape(0o755))

    def is_file(self, path: str | Path, content: bytes | None, shape: Shape) -> bool:
        """Whether a file is there, of that shape, and with that content unless None."""
        try:
            return _has(self.at(path), shape, stat.S_IFREG) and (
                content is None or self.at(path).read_bytes() == content
            )
        except FileNotFoundError:
            return False

    def is_folder(self, path: str | Path, shape: Shape) -> bool:
        """Whether a folder is there, of that shape."""
        return _has(self.at(path), shape, stat.S_IFDIR)

    def is_link(self, path: str | Path, target: str) -> bool:
        """Whether a link is there that leads to `target`."""
        with suppress(OSError):
            return str(self.at(path).readlink()) == target
        return False

    def remove(self, path: str | Path) -> None:
        """Remove a file, link or whole folder, and the folders above it that were made for it."""
        there = self.at(path)
        for aside in (there.with_name(f".{there.name}.new"), there):
            if aside.is_dir() and not aside.is_symlink():
                shutil.rmtree(aside)
            else:
                with suppress(FileNotFoundError, NotADirectoryError):
                    aside.unlink()
        self.forget(f"file {path}", f"folder {path}")
        self.remove_empty(Path(path).parent)

    def remove_empty(self, folder: str | Path) -> bool:
        """Remove a folder that was made here, and those above it, as far as they are empty.

        False: it stays, because something is in it.
        """
        for path in (Path(folder), *Path(folder).parents):
            if not self.was_created(f"folder {path}"):
                if self.at(path).exists():
                    break
                continue  # a removal that was cut had come so far
            try:
                self.at(path).rmdir()
            except FileNotFoundError:
                pass
            except OSError:
                return False
            self.forget(f"folder {path}")
        return True

    def record(self, what: str) -> None:
        """Write down that something is being made, before it is made."""
        known = self._memory()
        if what not in known:
            self._write({*known, what})

    def was_created(self, what: str) -> bool:
        """Whether it was made here."""
        return what in self._memory()

    def forget(self, *what: str) -> None:
        """It is gone. The last thing to be forgotten takes the memory with it, and its folder."""
        known = self._memory()
        if not known or not known.isdisjoint(what):
            self._write(known.difference(what))

    def _memory(self) -> frozenset[str]:
        try:
            return frozenset(map(str, json.loads(self.at(_MEMORY).read_bytes())["made"]))
        except FileNotFoundError:
            return frozenset()
        except (ValueError, KeyError, TypeError):
            raise Failed(
                f"{self.at(_MEMORY)} cannot be read: what was made here is not known",
                hint="Remove it, then run `polydev host setup` again",
            ) from None

    def _write(self, known: frozenset[str] | set[str]) -> None:
        memory = self.at(_MEMORY)
        if known - {f"folder {CONFIG}"}:
            memory.parent.mkdir(mode=0o755, exist_ok=True)
            write_whole(memory, json.dumps({"made": sorted(known)}, indent=1).encode() + b"\n")
            return
        memory.unlink(missing_ok=True)
        with suppress(OSError):
            memory.parent.rmdir()

    def _new_folder(self, path: Path, shape: Shape) -> None:
        self.record(f"folder {path}")
        self.at(path).mkdir(mode=shape.mode, exist_ok=True)


def _apply_shape(path: Path, shape: Shape) -> None:
    """Owner and mode of what is there, not of what a link leads to."""
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
