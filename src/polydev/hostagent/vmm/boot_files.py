"""Kernel and initramfs that a guest boots from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class BootFiles:
    """An uncompressed kernel (ELF) and its initramfs."""

    kernel: Path
    initramfs: Path
