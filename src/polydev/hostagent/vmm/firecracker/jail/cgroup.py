"""A VMM's cgroup: its path, a higher limit during snapshots, and its removal.

The jailer creates it and sets the limits; removal is up to the agent, and only possible once it is
empty. Without cgroup v2 there is nothing to do, and the jailer reports that.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger("polydev.hostagent")

_TRIES = 50
_PAUSE_S = 0.02


@dataclass(frozen=True, slots=True)
class JailerCgroups:
    """The cgroups of one agent's VMMs; `parent` belongs to this agent alone."""

    parent: str

    def allow_memory(self, machine: str, size_bytes: int) -> None:
        """Set `memory.max` of a running machine. Blocking."""
        if folder := self._folder(machine):
            with suppress(OSError):
                (folder / "memory.max").write_text(str(size_bytes))

    async def remove(self, machine: str) -> None:
        """Remove a machine's cgroup after its VMM has ended. Idempotent."""
        for _ in range(_TRIES):
            if await asyncio.to_thread(self._removed, machine):
                return
            # The kernel releases the last thread a moment after the exit.
            await asyncio.sleep(_PAUSE_S)
        log.warning("cannot remove the cgroup of %s: it is not empty", machine)

    def sweep(self, keep: Collection[str]) -> None:
        """Remove empty cgroups of machines other than `keep`. Blocking."""
        mounted = root()
        if mounted is None or not (mounted / self.parent).is_dir():
            return
        for folder in (mounted / self.parent).iterdir():
            if folder.is_dir() and folder.name not in keep:
                self._removed(folder.name)

    def _removed(self, machine: str) -> bool:
        folder = self._folder(machine)
        if folder is None:
            return True
        try:
            folder.rmdir()
        except OSError:
            return not folder.exists()
        return True

    def _folder(self, machine: str) -> Path | None:
        mounted = root()
        if mounted is None or not (mounted / self.parent / machine).is_dir():
            return None
        return mounted / self.parent / machine


def root() -> Path | None:
    """Return the mountpoint of cgroup v2. Source: proc(5), `/proc/mounts`."""
    for line in Path("/proc/mounts").read_text("utf-8", "replace").splitlines():
        _, where, kind, *_ = line.split(" ")
        if kind == "cgroup2":
            return Path(where)
    return None
