"""Which VMMs others go before: those of machines that nobody waits for. All methods block."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path

from polydev.hostagent.vmm.cgroups import group_path

log = logging.getLogger("polydev.hostagent")

_LAST, _USUAL = 10, 0
"""Nice values. Source: setpriority(2)."""
_LEAST = "1"
"""Of a control group, against 100 of others. Source: cgroup-v2.rst, `cpu.weight`."""


class Priority:
    """Of one VMM: by its control group where it has one, in which nice values count for nothing
    against others; else by those."""

    def __init__(self) -> None:
        self._pid = 0
        self._weight: tuple[Path, str] | None = None

    def give_way(self, pid: int) -> None:
        """Let every other machine go before that process; it goes on where that cannot be."""
        if pid == os.getpid():  # a machine that shares this process
            return
        self._pid = pid
        group = group_path(pid)
        if group is not None:
            with suppress(OSError):  # the processor may not be shared out by groups here
                weight = group / "cpu.weight"
                self._weight = (weight, weight.read_text())
                weight.write_text(_LEAST)
                return
        if not _set(pid, _LAST):
            log.info("process %d, for which nobody waits, does not give way to others", pid)

    def go_along(self) -> None:
        """Be like every other machine: somebody waits for it now."""
        if self._weight is not None:
            weight, usual = self._weight
            with suppress(OSError):
                weight.write_text(usual)
        elif self._pid:
            _set(self._pid, _USUAL)


def _set(pid: int, nice: int) -> bool:
    """Threads are asked one by one. Whether all could be."""
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(ProcessLookupError):
                os.setpriority(os.PRIO_PROCESS, int(thread.name), nice)
    except OSError:
        return False
    return True
