"""The memory of a machine that sleeps, as a file that only this host can open, and only until it is
restarted: docs/machines.md, "Hibernation"."""

from polydev.hostagent.snapshots.key import MemoryKey, MemoryKeys
from polydev.hostagent.snapshots.layout import Header, Labels
from polydev.hostagent.snapshots.reader import SnapshotFile, reading
from polydev.hostagent.snapshots.writer import SnapshotWriter, discard, writing

__all__ = [
    "Header",
    "Labels",
    "MemoryKey",
    "MemoryKeys",
    "SnapshotFile",
    "SnapshotWriter",
    "discard",
    "reading",
    "writing",
]
