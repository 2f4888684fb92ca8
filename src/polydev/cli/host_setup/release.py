"""A release of Firecracker: which one, where its archive comes from, and what is taken out of it.

`firecracker.py` installs what this has checked. An archive is untrusted until its SHA-256 is the
pinned one, and nothing of it is looked at before; from a trusted one, too, only the two programs
are taken, read as streams, so that no path or link in it means anything.
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
"""Where the project publishes; POLYDEV_FIRECRACKER_MIRROR names another place laid out alike."""

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
    """The release that is wanted."""

    version: str
    architecture: str
    sha256: str | None
    """None: nobody has said it."""
    mirror: str = RELEASES

    @classmethod
    def wanted(cls, mirror: str | None = None, sha256: str | None = None) -> Release:
        """The pinned release for this machine; what is given comes before what is pinned."""
        pins = tomllib.loads(Path(__file__).with_name("firecracker.toml").read_text("utf-8"))
        architecture = platform.machine()
        pin = sha256 or pins["sha256"].get(architecture) or None
        if pin is not None and not re.fullmatch("[0-9a-f]{64}", pin.lower()):
            raise BadSettings(
                "POLYDEV_FIRECRACKER_SHA256 is not usable: it must be 64 hexadecimal digits"
            )
        return cls(pins["version"], architecture, pin and pin.lower(), mirror or RELEASES)

    @property
    def archive(self) -> str:
        """The archive's file name."""
        return f"firecracker-v{self.version}-{self.architecture}.tgz"

    @property
    def url(self) -> str:
        return f"{self.mirror.rstrip('/')}/v{self.version}/{self.archive}"

    def required_sha256(self) -> str:
        """The pin. Raises BadSettings that says how to give one."""
        if self.sha256 is None:
            raise BadSettings(
                f"Firecracker {self.version} is not installed: its archive's SHA-256 is not pinned",
                hint=f"The project publishes it at {RELEASES}/v{self.version}/{self.archive}"
                ".sha256.txt: fetch it over a connection that you trust, put it into "
                f"POLYDEV_FIRECRACKER_SHA256, {AGAIN}. POLYDEV_DRIVER=qemu does without "
                "Firecracker",
            )
        return self.sha256

    def download(self, target: Path) -> None:
        """Fetch the archive into a file. Blocking, minutes. Raises Unavailable, Failed."""
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
                hint=f"Name another mirror in POLYDEV_FIRECRACKER_MIRROR, or a file, {AGAIN}",
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Unavailable(
                f"{self.url} could not be fetched ({error or type(error).__name__})",
                hint="Fetch it elsewhere and give it with --firecracker-archive, or name a mirror "
                "in POLYDEV_FIRECRACKER_MIRROR",
            ) from None

    def check(self, archive: Path) -> None:
        """Raises ImageDamaged unless the archive is the one that is pinned."""
        with archive.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != self.required_sha256():
            raise ImageDamaged(
                f"{archive.name} is not the Firecracker that is pinned: its SHA-256 is {found}, "
                f"not {self.sha256}",
                hint="It was cut short, changed, or is another release: nothing was installed",
            )

    def unpack(self, archive: Path, folder: Path) -> None:
        """Put the two programs of an archive into a folder. Raises ImageDamaged."""
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
            raise ImageDamaged(f"{archive.name} cannot be unpacked: {error}") from None
        raise ImageDamaged(f"{archive.name} holds no {' and no '.join(sorted(wanted))}")


def _bounded(pieces: Iterator[bytes], url: str) -> Iterator[bytes]:
    """What comes, until it is too much or takes too long. Raises Failed, Unavailable."""
    count, until = 0, time.monotonic() + _DOWNLOAD_LIMIT_S
    for piece in pieces:
        count += len(piece)
        if count > ARCHIVE_BYTES:
            raise Failed(f"{url} is larger than {ARCHIVE_BYTES >> 20} MiB: no Firecracker is")
        if time.monotonic() > until:
            raise Unavailable(f"{url} has not come whole in {_DOWNLOAD_LIMIT_S:.0f} s")
        yield piece


def _bounded_members(members: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members of an archive, as long as there are not too many, or too large ones."""
    total = 0
    for number, member in enumerate(members):
        total += member.size
        if number >= _MEMBERS or total > _UNPACKED_BYTES:
            raise tarfile.TarError("it holds too much")
        yield member


def _extract(members: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    content = members.extractfile(member)
    if content is None or member.size > _PROGRAM_BYTES:
        raise tarfile.TarError(f"{target.name} is no program of a sane size")
    with content, target.open("xb") as file:
        while piece := content.read(_PIECE):
            file.write(piece)
    target.chmod(0o755)
