"""CPU priority of VMMs that no user waits for. All methods block."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path

from polydev.hostagent.vmm.cgroups import group_path

log = logging.getLogger("polydev.hostagent")

_LAST, _USUAL = 10, 0
"""Nice values. Source: setpriority(2)."""
_LOWEST_WEIGHT = "1"
"""Weight of a control group; others have 100. Source: cgroup-v2.rst, `cpu.weight`."""


class Priority:
    """Lowers the priority of one VMM.

    It uses the VMM's control group if it has one, where nice values have no effect; else those.
    """

    def __init__(self) -> None:
        self._pid = 0
        self._weight: tuple[Path, str] | None = None

    def lower(self, pid: int) -> None:
        """Make a process yield to all other machines, if the host can."""
        if pid == os.getpid():  # a machine that shares this process
            return
        self._pid = pid
        group = group_path(pid)
        if group is not None:
            with suppress(OSError):  # the host may not have the cpu controller
                weight = group / "cpu.weight"
                self._weight = (weight, weight.read_text())
                weight.write_text(_LOWEST_WEIGHT)
                return
        if not _set(pid, _LAST):
            log.info("cannot lower the priority of background process %d", pid)

    def restore(self) -> None:
        """Give the process the usual priority: a user waits for it now."""
        if self._weight is not None:
            weight, usual = self._weight
            with suppress(OSError):
                weight.write_text(usual)
        elif self._pid:
            _set(self._pid, _USUAL)


def _set(pid: int, nice: int) -> bool:
    """Set the nice value of each thread. Return True if all could be set."""
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(ProcessLookupError):
                os.setpriority(os.PRIO_PROCESS, int(thread.name), nice)
    except OSError:
        return False
    return True
