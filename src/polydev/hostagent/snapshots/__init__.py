"""Encrypted memory snapshots of hibernated machines (docs/machines.md, "Hibernation").

Only this host can open them, and only until it restarts.
"""

from polydev.hostagent.snapshots.key import MemoryKey, MemoryKeys
from polydev.hostagent.snapshots.layout import Header, Labels
from polydev.hostagent.snapshots.reader import SnapshotFile, open_snapshot
from polydev.hostagent.snapshots.writer import SnapshotWriter, create_snapshot, discard

__all__ = [
    "Header",
    "Labels",
    "MemoryKey",
    "MemoryKeys",
    "SnapshotFile",
    "SnapshotWriter",
    "create_snapshot",
    "discard",
    "open_snapshot",
]
