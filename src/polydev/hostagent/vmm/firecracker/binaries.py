"""Where `firecracker` and `jailer` are, and which version they have.

`drivers.py` names them, the driver and its probe ask. A version below 1.13.1 is refused: the
requests, the snapshots and the jailer's options are written against that one.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from polydev.hostagent.health.logs import harmless
from polydev.hostagent.system.sandbox import read_with
from polydev.shared.errors import MissingTool, VmmFailed

LEAST = (1, 13, 1)
_ROOT = 0
"""Without any capability: root runs the program anyway, and only root may be able to read it."""
_VERSION_LIMIT_S = 30
_OUTPUT_BYTES = 4096
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Binaries:
    """Both binaries, with links resolved: the jailer names the jail after the file itself."""

    firecracker: Path
    jailer: Path

    @staticmethod
    def find(firecracker: Path | None = None, jailer: Path | None = None) -> Binaries:
        """Those named, else those on PATH. Raises: MissingTool."""
        return Binaries(_found("firecracker", firecracker), _found("jailer", jailer))


def _found(name: str, named: Path | None) -> Path:
    where = shutil.which(name, path=_PATH) if named is None else str(named)
    if where is None or not Path(where).is_file():
        location = f"at {named}" if named else "on PATH"
        raise MissingTool(
            f"There is no `{name}` {location}",
            hint=f"Install Firecracker {_words(LEAST)} or newer, or name it with "
            f"POLYDEV_{name.upper()}",
        )
    return Path(where).resolve()


async def read_version(binaries: Binaries) -> str:
    """Firecracker's version, such as `1.13.1`. Raises: VmmFailed when it is too old or unknown."""
    argv = [str(binaries.firecracker), "--version"]
    try:
        finished = await read_with(
            argv, uid=_ROOT, descriptors=(), limit_s=_VERSION_LIMIT_S, max_output=_OUTPUT_BYTES
        )
    except (OSError, TimeoutError) as error:
        raise VmmFailed(f"`{binaries.firecracker} --version` does not work: {error}") from error
    text = finished.output.decode("utf-8", "replace")
    found = re.search(r"v(\d{1,4})\.(\d{1,4})\.(\d{1,4})", text)
    if found is None:
        words = harmless(text + finished.errors.decode("utf-8", "replace")).split("\n")[0][:200]
        raise VmmFailed(f"{binaries.firecracker} does not tell its version: {words or 'silence'}")
    version = tuple(int(part) for part in found.groups())
    if version < LEAST:
        raise VmmFailed(
            f"Firecracker {_words(version)} is too old: {_words(LEAST)} is the least",
            hint=f"Replace {binaries.firecracker} and {binaries.jailer} with a newer release",
        )
    return _words(version)


def _words(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
