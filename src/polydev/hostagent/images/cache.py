"""Cache of slow downloads between builds, each keyed by a hash of its inputs.

The root image builder uses it, inside the store's lock. Entries appear by a rename, so that none is
incomplete; only the newest entry of a stage is retained.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class StageCache:
    """Entries `<folder>/<stage>-<key>`; `temporary` is on the same disk."""

    folder: Path
    temporary: Path
    renew: bool = False
    """Rebuild every entry: the distribution may have new packages."""

    async def get(self, stage: str, key: str, make: Callable[[Path], Awaitable[None]]) -> Path:
        """Return a stage's folder; `make` creates it if it is missing."""
        entry = self.folder / f"{stage}-{key}"
        if entry.is_dir() and not self.renew:
            return entry
        fresh = self.temporary / f"{stage}-fresh"
        await make(fresh)
        await asyncio.to_thread(self._publish, fresh, entry, stage)
        return entry

    def _publish(self, fresh: Path, entry: Path, stage: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for old in self.folder.glob(f"{stage}-{'[0-9a-f]' * 16}"):
            old.rename(self.temporary / f"old-{old.name}")
        fresh.rename(entry)
        for old in self.temporary.glob("old-*"):
            shutil.rmtree(old)
