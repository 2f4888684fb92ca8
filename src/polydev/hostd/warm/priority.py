"""Which VMMs others go before: those of machines that nobody waits for. All functions block."""

from __future__ import annotations

import os
from pathlib import Path

_LAST, _USUAL = 10, 0
"""Nice values. Source: setpriority(2)."""


def give_way(pid: int) -> None:
    """Let every other machine go first."""
    _set(pid, _LAST)


def go_along(pid: int) -> None:
    """Be like every other machine: somebody waits for it now."""
    _set(pid, _USUAL)


def _set(pid: int, nice: int) -> None:
    """Threads are asked one by one; a simulated machine has none of its own."""
    if pid == os.getpid():
        return
    for thread in Path(f"/proc/{pid}/task").glob("*"):
        try:
            os.setpriority(os.PRIO_PROCESS, int(thread.name), nice)
        except (OSError, ValueError):
            continue
