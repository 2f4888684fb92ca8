"""End a command with all its child processes."""

import asyncio
import contextlib
import os
import signal

END_GRACE_S = 3.0


async def end_group(process: asyncio.subprocess.Process) -> None:
    """End a process group, with SIGTERM first. Idempotent."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.returncode is not None:
            break
        _signal(process, number)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), END_GRACE_S)
    _signal(process, signal.SIGKILL)  # remaining processes of the group


def _signal(process: asyncio.subprocess.Process, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
