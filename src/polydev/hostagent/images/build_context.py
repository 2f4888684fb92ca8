"""One image build: its temporary folder, log, progress, and contained programs.

The programs cannot outlive the builder. It knows no kernels, packages or images.
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from shutil import which
from typing import IO

from polydev.hostagent.images.manifest import BuildProgress, ImageKind, ProgressSink
from polydev.shared.errors import DiskFull, ImageBuildFailed, MissingTool
from polydev.shared.hints import Hint

# Killed together with the builder; all its children end with its PID namespace.
_CONTAINED = (
    "setpriv",
    "--pdeathsig=KILL",
    "--",
    "unshare",
    "--pid",
    "--fork",
    "--kill-child=KILL",
    "--mount-proc",
    "--",
)
_TOOL_PACKAGES = {
    "apt-cache": "apt",
    "apt-get": "apt",
    "depmod": "kmod",
    "dpkg-deb": "dpkg",
    "lz4": "lz4",
    "mke2fs": "e2fsprogs",
    "mmdebstrap": "mmdebstrap",
    "npm": "npm",
    "setpriv": "util-linux",
    "unshare": "util-linux",
    "tar": "tar",
    "zstd": "zstd",
}
_LINE_LIMIT = 1 << 20
_NO_SPACE = os.strerror(errno.ENOSPC)


@dataclass(slots=True)
class BuildContext:
    """One build's folder, log and progress; its creator removes the folder."""

    kind: ImageKind
    folder: Path
    log_path: Path
    sink: ProgressSink
    started: float = field(default_factory=time.monotonic)
    stage_name: str = "start"

    def stage(self, name: str, fraction: float | None = None) -> None:
        """Report the build's stage, and the progress in it."""
        self.stage_name = name
        self.sink(BuildProgress(self.kind, name, fraction, time.monotonic() - self.started))

    async def run(
        self,
        arguments: Sequence[str],
        *,
        cwd: Path | None = None,
        on_line: Callable[[str], None] | None = None,
    ) -> str:
        """Run a program, log its output and return it.

        Raises: MissingTool, DiskFull, ImageBuildFailed naming stage and log.
        """
        require_tool(arguments[0])
        with self.log_path.open("ab") as log:
            log.write(f"+ {' '.join(arguments)}\n".encode())
            log.flush()
            process = await asyncio.create_subprocess_exec(
                *_CONTAINED,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                cwd=cwd,
                limit=_LINE_LIMIT,
                start_new_session=True,
            )
            try:
                lines = await _copy_lines(process, log, on_line)
                status = await process.wait()
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
        if status != 0:
            raise self._failure(arguments[0], status, lines)
        return "\n".join(lines)

    def failed(self, what: str, hint: str = "") -> ImageBuildFailed:
        """Return the error of a failed build."""
        return ImageBuildFailed(
            f"Building the {self.kind} image failed at stage {self.stage_name}: {what}",
            hint=hint or f"See {self.log_path}",
        )

    def _failure(self, tool: str, status: int, lines: Sequence[str]) -> Exception:
        if any(_NO_SPACE in line for line in lines[-50:]):
            return disk_full(self.folder)
        last = next((line for line in reversed(lines) if line.strip()), "no output")
        return self.failed(f"{tool} exited with status {status} ({last[:300]})")


async def _copy_lines(
    process: asyncio.subprocess.Process, log: IO[bytes], on_line: Callable[[str], None] | None
) -> list[str]:
    assert process.stdout is not None  # noqa: S101 - stdout=PIPE
    lines: list[str] = []
    while raw := await process.stdout.readline():
        log.write(raw)
        log.flush()
        line = raw.decode(errors="replace").rstrip("\r\n")
        lines.append(line)
        if on_line is not None:
            on_line(line)
    return lines


def require_tool(name: str) -> None:
    """Raise MissingTool unless a program is on PATH."""
    if which(name) is None:
        package = _TOOL_PACKAGES.get(name, name)
        raise MissingTool(
            f"{name} is not installed; image builds need it",
            hint=f"Install it: apt-get install {package}",
        )


def disk_full(folder: Path, detail: str = "") -> DiskFull:
    """Return the error of a full disk."""
    return DiskFull(
        f"Not enough space for an image build in {folder}{detail}",
        hint=Hint.SET_IMAGES_DIR.text(),
    )
