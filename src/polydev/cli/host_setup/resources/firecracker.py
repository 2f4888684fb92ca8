"""Installation of the pinned release of Firecracker and its jailer.

    /usr/local/lib/polydev/firecracker-<version>/   firecracker, jailer, manifest.json
    /usr/local/lib/polydev/firecracker -> firecracker-<version>
    /usr/local/bin/firecracker, jailer -> the same

A release is unpacked in a temporary folder, and gets its final name after its version is checked.
The old release is removed when the links point to the new one. Running machines keep their binary.
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

from polydev.cli.host_setup.resource import State, Status
from polydev.cli.host_setup.resources.release import PROGRAMS, Release
from polydev.cli.host_setup.target_root import LIBRARY, Shape, TargetRoot
from polydev.shared.atomic_files import sync_folder, write_whole
from polydev.shared.errors import AlreadyExists, BadSettings, ImageDamaged

_LINK = f"{LIBRARY}/firecracker"
_TEMPORARY = f"{LIBRARY}/.firecracker-new"
_VERSION_LIMIT_S = 20


@dataclass(frozen=True, slots=True)
class Firecracker:
    """Installed release of Firecracker."""

    target: TargetRoot
    release: Release
    archive: Path | None
    """Local archive to install instead of a download."""
    driver: str
    """POLYDEV_DRIVER."""
    name: str = "firecracker"

    def check(self) -> Status:
        fault = self._problem()
        if fault is None:
            message = f"{self.release.version} in {self._folder}"
            return Status(self.name, State.OK, message)
        if self.driver not in {"auto", "firecracker"}:
            message = f"Not needed: POLYDEV_DRIVER is {self.driver}"
            return Status(self.name, State.OK, message)
        if self.archive is None and not Path("/dev/kvm").exists() and self.driver == "auto":
            return Status(self.name, State.OK, "Not needed: it requires /dev/kvm")
        try:
            self.release.required_sha256()
        except BadSettings as error:
            return Status(self.name, State.MISSING, error.message, error.hint)
        return Status(self.name, State.MISSING, fault, "Run `polydev host setup`")

    def apply(self) -> None:
        self.release.required_sha256()
        for program in PROGRAMS:
            self._require_own_link(program)
        temporary = self.target.at(_TEMPORARY)
        self.target.folder(LIBRARY, Shape(0o755))
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(mode=0o755)
        try:
            self._prepare(temporary)
            self._name(temporary)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self.target.link(_LINK, self._folder.name)
        for program in PROGRAMS:
            self.target.link(f"/usr/local/bin/{program}", f"{_LINK}/{program}")
        for old in self.target.at(LIBRARY).glob("firecracker-*"):
            if old.name != self._folder.name:
                shutil.rmtree(old)

    def revert(self, *, purge: bool) -> Sequence[str]:
        for program in PROGRAMS:
            if self.target.is_link(f"/usr/local/bin/{program}", f"{_LINK}/{program}"):
                self.target.remove(f"/usr/local/bin/{program}")
        self.target.remove_empty("/usr/local/bin")
        self.target.remove(_LINK)
        for folder in (self.target.at(_TEMPORARY), *self.target.at(LIBRARY).glob("firecracker-*")):
            shutil.rmtree(folder, ignore_errors=True)
        self.target.remove_empty(LIBRARY)
        return []

    @property
    def _folder(self) -> Path:
        return Path(f"{_LINK}-{self.release.version}")

    def _problem(self) -> str | None:
        """Describe the problem of the installation; None if it is correct."""
        problem = f"Firecracker {self.release.version} is not installed"
        links = {f"/usr/local/bin/{name}": f"{_LINK}/{name}" for name in PROGRAMS}
        for link, destination in ({_LINK: self._folder.name} | links).items():
            if not self.target.is_link(link, destination):
                return problem
        folder = self.target.at(self._folder)
        try:
            manifest = json.loads((folder / "manifest.json").read_bytes())
            if manifest["programs"] != dict(_checksums(folder)):
                return f"Firecracker in {self._folder} has changed since its installation"
            pin = self.release.sha256
            if pin is not None and manifest["archive"] != pin:
                return f"Firecracker in {self._folder} is not from the pinned archive"
        except (OSError, ValueError, KeyError, TypeError):
            return problem
        return None

    def _require_own_link(self, program: str) -> None:
        """Raises AlreadyExists if a foreign program is at the path of the link."""
        link = f"/usr/local/bin/{program}"
        is_there = os.path.lexists(self.target.at(link))
        if is_there and not self.target.is_link(link, f"{_LINK}/{program}"):
            raise AlreadyExists(
                f"{link} exists and does not belong to Polydev",
                hint="Move it, then run `polydev host setup` again",
            )

    def _prepare(self, temporary: Path) -> None:
        """Unpack a release into a folder, and check it."""
        archive = temporary / self.release.archive
        if self.archive is None:
            self.release.download(archive)
        else:
            shutil.copyfile(self.archive, archive)  # so that the checked file is the unpacked one
        self.release.check(archive)
        self.release.unpack(archive, temporary)
        archive.unlink()
        output = _version(temporary / "firecracker")
        if self.release.version not in output.split() and f"v{self.release.version}" not in output:
            raise ImageDamaged(
                f"The program in {self.release.archive} does not report version "
                f"{self.release.version}: {output[:200]!r}",
                hint="The previous installation is unchanged",
            )
        manifest = {"archive": self.release.sha256, "programs": dict(_checksums(temporary))}
        write_whole(temporary / "manifest.json", json.dumps(manifest).encode(), mode=0o644)
        for program in PROGRAMS:
            with (temporary / program).open("rb") as file:
                os.fsync(file.fileno())

    def _name(self, temporary: Path) -> None:
        # An existing folder of that name is damaged, so no machine runs from it.
        folder = self.target.at(self._folder)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
        sync_folder(folder.parent)


def _version(program: Path) -> str:
    """Output of `--version`. Raises ImageDamaged if the program does not run."""
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
            hint="The previous installation is unchanged",
        ) from None
    return done.stdout[:4096]


def _checksums(folder: Path) -> Iterator[tuple[str, str]]:
    for program in PROGRAMS:
        with (folder / program).open("rb") as file:
            yield program, hashlib.file_digest(file, "sha256").hexdigest()
