"""Keeps what takes long to fetch between builds, each stage under the hash of its own inputs.

The root filesystem builder uses it, inside the store's lock. An entry appears by a rename, so
there are no halves; only the newest entry of a stage is kept.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class StageCache:
    """`<folder>/<stage>-<key>`; entries are made in `aside`, which is on the same disk."""

    folder: Path
    aside: Path
    renew: bool = False
    """Make every entry anew, also where one is there: the distribution has moved on."""

    async def get(self, stage: str, key: str, make: Callable[[Path], Awaitable[None]]) -> Path:
        """The folder of a stage, made by `make` (which creates it) if it is not there yet."""
        entry = self.folder / f"{stage}-{key}"
        if entry.is_dir() and not self.renew:
            return entry
        fresh = self.aside / f"{stage}-fresh"
        await make(fresh)
        await asyncio.to_thread(self._publish, fresh, entry, stage)
        return entry

    def _publish(self, fresh: Path, entry: Path, stage: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for old in self.folder.glob(f"{stage}-{'[0-9a-f]' * 16}"):
            old.rename(self.aside / f"old-{old.name}")
        fresh.rename(entry)
        for old in self.aside.glob("old-*"):
            shutil.rmtree(old)
