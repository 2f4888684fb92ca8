"""Reads a config drive as a guest does at boot (docs/machines.md)."""

from __future__ import annotations

import shlex
import tarfile
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class GuestConfig:
    """A simulated guest's configuration."""

    kind: str
    host_key: bytes = field(repr=False)
    authorized_keys: str
    token: str | None = field(repr=False)


def read_config(drive: Path) -> GuestConfig:
    """Read a drive. Blocking. Raises OSError, ValueError or KeyError if it is invalid."""
    try:
        with tarfile.open(drive) as archive:
            members = {member.name: _content(archive, member) for member in archive}
    except tarfile.TarError as error:
        raise ValueError(str(error)) from error
    pairs = (word.partition("=") for word in shlex.split(members["machine.env"].decode()))
    variables = {name: value for name, _, value in pairs}
    token = members.get("token")
    return GuestConfig(
        kind=variables["POLYDEV_KIND"],
        host_key=members["ssh_host_ed25519_key"],
        authorized_keys=members["authorized_keys"].decode(),
        token=None if token is None else token.decode().strip(),
    )


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    return b"" if file is None else file.read()
