"""End VMM processes that belong to no machine."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import signal
from collections.abc import Sequence

log = logging.getLogger("polydev.hostagent")

_KILL_LIMIT_S = 10.0


async def end_leftovers(pids: Sequence[int]) -> None:
    """Kill these processes, and wait until they are gone."""
    for pid in pids:
        log.warning("ending VMM process %d, which belongs to no machine", pid)
        await asyncio.to_thread(_kill, pid)


def _kill(pid: int) -> None:
    """End a process and wait until it is gone, by its pidfd: the number alone may be reused."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        select.select([descriptor], [], [], _KILL_LIMIT_S)
    finally:
        os.close(descriptor)
