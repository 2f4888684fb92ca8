"""Paths and version of `firecracker` and `jailer`.

Versions below 1.13.1 are refused: requests, snapshots and jailer options follow that release.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from polydev.hostagent.system.logs import harmless
from polydev.hostagent.system.sandbox import read_with
from polydev.shared.errors import MissingTool, VmmFailed
from polydev.shared.hints import Hint

MIN_VERSION = (1, 13, 1)
_ROOT = 0
"""Run as root, without capabilities: the binary may be readable by root only."""
_VERSION_LIMIT_S = 30
_OUTPUT_BYTES = 4096
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Binaries:
    """Both programs, with symlinks resolved: the jailer names the jail after the file."""

    firecracker: Path
    jailer: Path

    @staticmethod
    def find(firecracker: Path | None = None, jailer: Path | None = None) -> Binaries:
        """Return the given paths, else those on PATH. Raises: MissingTool."""
        return Binaries(_found("firecracker", firecracker), _found("jailer", jailer))


def _found(name: str, named: Path | None) -> Path:
    where = shutil.which(name, path=_PATH) if named is None else str(named)
    if where is None or not Path(where).is_file():
        location = f"at {named}" if named else "on PATH"
        raise MissingTool(
            f"`{name}` was not found {location}",
            hint=Hint.INSTALL_FIRECRACKER.text(version=_dotted(MIN_VERSION), program=name.upper()),
        )
    return Path(where).resolve()


async def read_version(binaries: Binaries) -> str:
    """Return Firecracker's version, such as `1.13.1`.

    Raises: VmmFailed if it is too old or unknown.
    """
    argv = [str(binaries.firecracker), "--version"]
    try:
        finished = await read_with(
            argv, uid=_ROOT, descriptors=(), limit_s=_VERSION_LIMIT_S, max_output=_OUTPUT_BYTES
        )
    except (OSError, TimeoutError) as error:
        raise VmmFailed(f"`{binaries.firecracker} --version` failed: {error}") from error
    text = finished.output.decode("utf-8", "replace")
    found = re.search(r"v(\d{1,4})\.(\d{1,4})\.(\d{1,4})", text)
    if found is None:
        output = harmless(text + finished.errors.decode("utf-8", "replace")).split("\n")[0][:200]
        raise VmmFailed(f"{binaries.firecracker} reports no version: {output or 'no output'}")
    version = tuple(int(part) for part in found.groups())
    if version < MIN_VERSION:
        raise VmmFailed(
            f"Firecracker {_dotted(version)} is too old: Polydev needs {_dotted(MIN_VERSION)}",
            hint=f"Replace {binaries.firecracker} and {binaries.jailer} with a newer release",
        )
    return _dotted(version)


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
