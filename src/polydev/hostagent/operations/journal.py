"""The journal of operations on disk: one small JSON file each, with a retention limit.

An entry holds only a keyed digest of the request: bodies carry tokens and credentials, and an
unkeyed digest of a short secret could be guessed.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import time
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from polydev.shared.atomic_files import write_whole
from polydev.shared.host_protocol import HostMachineView, Problem

log = logging.getLogger("polydev.hostagent")

MAX_ENTRIES = 2000
RETENTION_S = 7 * 24 * 3600.0


class JournalEntry(BaseModel):
    """The state of one operation."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    operation_id: str
    kind: str
    vm_id: str
    digest: str
    state: Literal["running", "done", "failed", "interrupted"]
    machine: HostMachineView | None = None
    error: Problem | None = None
    asked_at: float
    ended_at: float | None = None


class OperationJournal:
    """A folder of entries. Its methods block: call them in threads."""

    def __init__(
        self, folder: Path, max_entries: int = MAX_ENTRIES, retention_s: float = RETENTION_S
    ) -> None:
        self._folder = folder
        self._max_entries = max_entries
        self._retention_s = retention_s
        self._key = b""

    def open(self) -> dict[str, JournalEntry]:
        """Create the folder and its key if missing; read all entries, oldest first.

        Operations that ran when the agent died become `interrupted`.
        """
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._key = self._read_or_create_key()
        entries = [entry for path in self._folder.glob("*.json") if (entry := _read(path))]
        entries.sort(key=lambda entry: entry.asked_at)
        for temporary in self._folder.glob(".*.new"):
            temporary.unlink(missing_ok=True)
        return {
            entry.operation_id: entry
            if entry.state != "running"
            else entry.model_copy(update={"state": "interrupted"})
            for entry in entries
        }

    def digest(self, body: bytes) -> str:
        """Return a keyed digest of a body, which reveals nothing of it."""
        return hmac.new(self._key, body, hashlib.sha256).hexdigest()

    def write(self, entry: JournalEntry) -> None:
        """Write an entry. Raises OSError."""
        write_whole(
            self._path(entry.operation_id),
            entry.model_dump_json().encode(),
            durable=entry.state != "running",
        )

    def remove(self, operation_id: str) -> None:
        """Remove an entry."""
        self._path(operation_id).unlink(missing_ok=True)

    def outdated(self, entries: dict[str, JournalEntry]) -> list[str]:
        """Return the ids of ended operations to remove; `entries` is oldest first."""
        ended = [entry for entry in entries.values() if entry.state != "running"]
        surplus = max(0, len(ended) - self._max_entries)
        oldest = time.time() - self._retention_s
        return [
            entry.operation_id
            for position, entry in enumerate(ended)
            if position < surplus or entry.asked_at < oldest
        ]

    def _path(self, operation_id: str) -> Path:
        return self._folder / f"{operation_id}.json"

    def _read_or_create_key(self) -> bytes:
        path = self._folder / "key"
        if not path.exists() or path.stat().st_size != 32:
            write_whole(path, os.urandom(32))
        return path.read_bytes()


def _read(path: Path) -> JournalEntry | None:
    try:
        return JournalEntry.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        log.warning("removed an unreadable journal entry: %s", path.name)
        path.unlink(missing_ok=True)
        return None
