"""Release of Firecracker: version, download, verification and unpacking.

An archive is untrusted, and is not opened, until its SHA-256 matches the pinned one. Only the two
programs are extracted, as streams, so that paths and links in the archive have no effect.
"""

from __future__ import annotations

import hashlib
import platform
import re
import tarfile
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from polydev.shared.errors import BadSettings, Failed, ImageDamaged, Unavailable

RELEASES = "https://github.com/firecracker-microvm/firecracker/releases/download"
"""Download URL of the project. POLYDEV_FIRECRACKER_MIRROR sets one with the same layout."""

PROGRAMS = ("firecracker", "jailer")
ARCHIVE_BYTES = 256 << 20
_PROGRAM_BYTES = 64 << 20
_UNPACKED_BYTES = 2 << 30
_MEMBERS = 1000
_PIECE = 1 << 20
_STALL_S = 30.0
_DOWNLOAD_LIMIT_S = 900.0

AGAIN = "then run `polydev host setup` again"


@dataclass(frozen=True, slots=True)
class Release:
    """Release to install."""

    version: str
    architecture: str
    sha256: str | None
    """None if it is not known."""
    mirror: str = RELEASES

    @classmethod
    def wanted(cls, mirror: str | None = None, sha256: str | None = None) -> Release:
        """Pinned release for this machine. Arguments override the pins."""
        pins = tomllib.loads(Path(__file__).with_name("firecracker.toml").read_text("utf-8"))
        architecture = platform.machine()
        pin = sha256 or pins["sha256"].get(architecture) or None
        if pin is not None and not re.fullmatch("[0-9a-f]{64}", pin.lower()):
            raise BadSettings(
                "POLYDEV_FIRECRACKER_SHA256 is invalid: it must be 64 hexadecimal digits"
            )
        return cls(pins["version"], architecture, pin and pin.lower(), mirror or RELEASES)

    @property
    def archive(self) -> str:
        """File name of the archive."""
        return f"firecracker-v{self.version}-{self.architecture}.tgz"

    @property
    def url(self) -> str:
        return f"{self.mirror.rstrip('/')}/v{self.version}/{self.archive}"

    def required_sha256(self) -> str:
        """Return the pin. Raises BadSettings if there is none."""
        if self.sha256 is None:
            raise BadSettings(
                f"Firecracker {self.version} is not installed: its archive's SHA-256 is not pinned",
                hint=f"The project publishes it at {RELEASES}/v{self.version}/{self.archive}"
                ".sha256.txt. Download it over a connection that you trust, set "
                f"POLYDEV_FIRECRACKER_SHA256, {AGAIN}. POLYDEV_DRIVER=qemu needs no Firecracker",
            )
        return self.sha256

    def download(self, target: Path) -> None:
        """Download the archive to a file. Blocks for minutes. Raises Unavailable, Failed."""
        try:
            with (
                httpx.Client(follow_redirects=True, timeout=_STALL_S) as client,
                client.stream("GET", self.url) as answer,
                target.open("wb") as file,
            ):
                answer.raise_for_status()
                for piece in _bounded(answer.iter_bytes(_PIECE), self.url):
                    file.write(piece)
        except httpx.HTTPStatusError as error:
            raise Unavailable(
                f"{self.url} answered {error.response.status_code}",
                hint=f"Set POLYDEV_FIRECRACKER_MIRROR to another mirror, {AGAIN}",
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Unavailable(
                f"Cannot download {self.url} ({error or type(error).__name__})",
                hint="Download it elsewhere and pass it with --firecracker-archive, or set "
                "POLYDEV_FIRECRACKER_MIRROR to a mirror",
            ) from None

    def check(self, archive: Path) -> None:
        """Verify the archive's SHA-256. Raises ImageDamaged."""
        with archive.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != self.required_sha256():
            raise ImageDamaged(
                f"{archive.name} is not the pinned Firecracker: its SHA-256 is {found}, "
                f"not {self.sha256}",
                hint="It is truncated, changed or another release. Nothing was installed",
            )

    def unpack(self, archive: Path, folder: Path) -> None:
        """Extract the two programs into a folder. Raises ImageDamaged."""
        wanted = {f"{name}-v{self.version}-{self.architecture}": name for name in PROGRAMS}
        try:
            with tarfile.open(archive, "r|gz") as members:
                for member in _bounded_members(members):
                    name = wanted.pop(Path(member.name).name, None) if member.isreg() else None
                    if name is not None:
                        _extract(members, member, folder / name)
                    if not wanted:
                        return
        except (tarfile.TarError, EOFError, OSError) as error:
            raise ImageDamaged(f"Cannot unpack {archive.name}: {error}") from None
        raise ImageDamaged(f"{archive.name} contains no {' and no '.join(sorted(wanted))}")


def _bounded(pieces: Iterator[bytes], url: str) -> Iterator[bytes]:
    """Limit a download in size and time. Raises Failed, Unavailable."""
    count, until = 0, time.monotonic() + _DOWNLOAD_LIMIT_S
    for piece in pieces:
        count += len(piece)
        if count > ARCHIVE_BYTES:
            raise Failed(
                f"{url} is larger than {ARCHIVE_BYTES >> 20} MiB, so it is not Firecracker"
            )
        if time.monotonic() > until:
            raise Unavailable(f"The download of {url} took longer than {_DOWNLOAD_LIMIT_S:.0f} s")
        yield piece


def _bounded_members(members: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Limit the number and total size of an archive's members."""
    total = 0
    for number, member in enumerate(members):
        total += member.size
        if number >= _MEMBERS or total > _UNPACKED_BYTES:
            raise tarfile.TarError("it is too large")
        yield member


def _extract(members: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    content = members.extractfile(member)
    if content is None or member.size > _PROGRAM_BYTES:
        raise tarfile.TarError(f"{target.name} is not a program of plausible size")
    with content, target.open("xb") as file:
        while piece := content.read(_PIECE):
            file.write(piece)
    target.chmod(0o755)
