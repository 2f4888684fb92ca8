"""The memory of a machine that sleeps, as a file that only this host can open, and only until it is
restarted: docs/machines.md, "Hibernation"."""

from polydev.hostd.snapshots.key import MemoryKey, MemoryKeys
from polydev.hostd.snapshots.layout import Header, Labels
from polydev.hostd.snapshots.reader import SnapshotFile, reading
from polydev.hostd.snapshots.writer import SnapshotWriter, discard, writing

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
