"""Firecracker and its jailer, of the pinned release, where the host agent finds them.

    /usr/local/lib/polydev/firecracker-<version>/   firecracker, jailer, manifest.json
    /usr/local/lib/polydev/firecracker -> firecracker-<version>
    /usr/local/bin/firecracker, jailer -> the same

A release is put together aside, asked for its version, and only then named; what was there before
goes when the links lead to it. Running machines keep what they run.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from polydev.cli.host_setup.release import PROGRAMS, Release
from polydev.cli.host_setup.resources import State, Status
from polydev.cli.host_setup.target_root import LIBRARY, Shape, TargetRoot
from polydev.shared.atomic_files import sync_folder, write_whole
from polydev.shared.errors import AlreadyExists, BadSettings, ImageDamaged

_LINK = f"{LIBRARY}/firecracker"
_ASIDE = f"{LIBRARY}/.firecracker-new"
_VERSION_LIMIT_S = 20


@dataclass(frozen=True, slots=True)
class Firecracker:
    """The installed release."""

    place: TargetRoot
    release: Release
    archive: Path | None
    """A file to take it from instead of the network."""
    driver: str
    """POLYDEV_DRIVER."""
    name: str = "firecracker"

    def check(self) -> Status:
        fault = self._problem()
        if fault is None:
            words = f"{self.release.version} in {self._folder}"
            return Status(self.name, State.OK, words)
        if self.driver not in {"auto", "firecracker"}:
            words = f"Not needed: POLYDEV_DRIVER is {self.driver}"
            return Status(self.name, State.OK, words)
        if self.archive is None and not Path("/dev/kvm").exists() and self.driver == "auto":
            return Status(self.name, State.OK, "Not needed: it does not run without /dev/kvm")
        try:
            self.release.required_sha256()
        except BadSettings as error:
            return Status(self.name, State.MISSING, error.message, error.hint)
        return Status(self.name, State.MISSING, fault, "`polydev host setup` installs it")

    def apply(self) -> None:
        self.release.required_sha256()
        for program in PROGRAMS:
            self._require_own_link(program)
        aside = self.place.at(_ASIDE)
        self.place.folder(LIBRARY, Shape(0o755))
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(mode=0o755)
        try:
            self._prepare(aside)
            self._name(aside)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        self.place.link(_LINK, self._folder.name)
        for program in PROGRAMS:
            self.place.link(f"/usr/local/bin/{program}", f"{_LINK}/{program}")
        for old in self.place.at(LIBRARY).glob("firecracker-*"):
            if old.name != self._folder.name:
                shutil.rmtree(old)

    def revert(self, *, purge: bool) -> Sequence[str]:
        for program in PROGRAMS:
            if self.place.is_link(f"/usr/local/bin/{program}", f"{_LINK}/{program}"):
                self.place.remove(f"/usr/local/bin/{program}")
        self.place.remove_empty("/usr/local/bin")
        self.place.remove(_LINK)
        for folder in (self.place.at(_ASIDE), *self.place.at(LIBRARY).glob("firecracker-*")):
            shutil.rmtree(folder, ignore_errors=True)
        self.place.remove_empty(LIBRARY)
        return []

    @property
    def _folder(self) -> Path:
        return Path(f"{_LINK}-{self.release.version}")

    def _problem(self) -> str | None:
        """What is wrong with what is installed, in words; None: nothing."""
        words = f"Firecracker {self.release.version} is not installed"
        links = {f"/usr/local/bin/{name}": f"{_LINK}/{name}" for name in PROGRAMS}
        for link, target in ({_LINK: self._folder.name} | links).items():
            if not self.place.is_link(link, target):
                return words
        folder = self.place.at(self._folder)
        try:
            manifest = json.loads((folder / "manifest.json").read_bytes())
            if manifest["programs"] != dict(_checksums(folder)):
                return f"Firecracker in {self._folder} was changed since it was installed"
            pin = self.release.sha256
            if pin is not None and manifest["archive"] != pin:
                return f"Firecracker in {self._folder} came from another archive than the pinned"
        except (OSError, ValueError, KeyError, TypeError):
            return words
        return None

    def _require_own_link(self, program: str) -> None:
        """Raises AlreadyExists when somebody else's program stands where the link will be."""
        link = f"/usr/local/bin/{program}"
        is_there = os.path.lexists(self.place.at(link))
        if is_there and not self.place.is_link(link, f"{_LINK}/{program}"):
            raise AlreadyExists(
                f"{link} is not the set-up's, and was left as it is",
                hint="Move it elsewhere, then run `polydev host setup` again",
            )

    def _prepare(self, aside: Path) -> None:
        """A whole release in a folder, checked and tried."""
        archive = aside / self.release.archive
        if self.archive is None:
            self.release.download(archive)
        else:
            shutil.copyfile(self.archive, archive)  # what was checked must be what is unpacked
        self.release.check(archive)
        self.release.unpack(archive, aside)
        archive.unlink()
        said = _version(aside / "firecracker")
        if self.release.version not in said.split() and f"v{self.release.version}" not in said:
            raise ImageDamaged(
                f"The program in {self.release.archive} does not say that it is "
                f"{self.release.version}: {said[:200]!r}",
                hint="What was installed before is untouched",
            )
        manifest = {"archive": self.release.sha256, "programs": dict(_checksums(aside))}
        write_whole(aside / "manifest.json", json.dumps(manifest).encode(), mode=0o644)
        for program in PROGRAMS:
            with (aside / program).open("rb") as file:
                os.fsync(file.fileno())

    def _name(self, aside: Path) -> None:
        """Give the folder its name. One of that name was damaged: nothing runs from it."""
        folder = self.place.at(self._folder)
        if folder.exists():
            shutil.rmtree(folder)
        aside.rename(folder)
        sync_folder(folder.parent)


def _version(program: Path) -> str:
    """What a program says to `--version`. Raises ImageDamaged when it does not run."""
    try:
        done = subprocess.run(
            [program, "--version"],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            stdin=subprocess.DEVNULL,
            env={"PATH": "/usr/bin:/bin"},
            timeout=_VERSION_LIMIT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ImageDamaged(
            f"The {program.name} of the archive does not run ({error})",
            hint="What was installed before is untouched",
        ) from None
    return done.stdout[:4096]


def _checksums(folder: Path) -> Iterator[tuple[str, str]]:
    for program in PROGRAMS:
        with (folder / program).open("rb") as file:
            yield program, hashlib.file_digest(file, "sha256").hexdigest()
