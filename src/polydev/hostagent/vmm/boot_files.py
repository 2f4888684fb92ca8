"""What any guest boots from, whichever VMM runs it: probes and `drivers.py` speak of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class BootFiles:
    """An uncompressed kernel (ELF) and its initramfs."""

    kernel: Path
    initramfs: Path
