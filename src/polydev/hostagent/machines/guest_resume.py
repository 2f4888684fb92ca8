"""Prepare a guest for hibernation, and renew it after a resume, through its channel.

Its user may have changed the guest in any way, so each step is bounded and nothing relies on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable
from functools import cache
from pathlib import Path

from polydev.hostagent.channel.contract import GuestChannel, GuestProgram
from polydev.hostagent.channel.ssh_errors import printable
from polydev.hostagent.machines.machine import RunningMachine
from polydev.shared.errors import GuestMisbehaved, PolydevError
from polydev.shared.host_protocol import STDERR, ExecRequest

log = logging.getLogger("polydev.hostagent")

PROGRAM_NAME = "polydev-awake"
"""Name of the script in the guest's process list."""
_SCRIPT = Path(__file__).resolve().parents[2] / "guest" / "after_resume.sh"
_FLUSH_LIMIT_S = 10.0
_RENEW_LIMIT_S = 20.0
_RANDOMNESS_BYTES = 64


async def flush(machine: RunningMachine) -> None:
    """Sync the guest's disk, then close its channel.

    A guest that fails to sync is saved anyway: its memory holds the data. Programs that run
    for a client end with the channel.
    """
    try:
        async with asyncio.timeout(_FLUSH_LIMIT_S):
            await _ended(await machine.channel.exec(ExecRequest(argv=["sync"])))
    except (PolydevError, TimeoutError) as error:
        log.info("%s did not sync its disk before hibernation: %s", machine.folder.vm_id, error)
    with contextlib.suppress(Exception):
        await machine.channel.close()


async def resume_guest(machine: RunningMachine) -> None:
    """Renew a resumed guest; a failure is only logged."""
    try:
        await renew(machine.channel)
    except PolydevError as error:
        log.warning("%s runs, but its renewal failed: %s", machine.folder.vm_id, error.message)


async def renew(channel: GuestChannel) -> None:
    """Set a paused guest's clock, reseed its randomness, and end dead connections.

    Raises: ChannelLost, GuestMisbehaved.
    """
    try:
        async with asyncio.timeout(_RENEW_LIMIT_S):
            await channel.connect(_RENEW_LIMIT_S)
            program = await channel.exec(ExecRequest(argv=["sh", "-c", _script(), PROGRAM_NAME]))
            errors = await _ended(program, _send_seed_and_time)
    except TimeoutError:
        raise GuestMisbehaved("The renewal of its clock and randomness timed out") from None
    if errors:
        raise GuestMisbehaved(
            f"The renewal of its clock and randomness failed: {printable(errors)}"
        )


async def _send_seed_and_time(program: GuestProgram) -> None:
    """Send what after_resume.sh reads once it is ready: so the time is exact."""
    await program.write(os.urandom(_RANDOMNESS_BYTES) + f"{time.time():.9f}".encode())
    await program.write_eof()


async def _ended(
    program: GuestProgram, when_ready: Callable[[GuestProgram], Awaitable[None]] | None = None
) -> str:
    """Wait for a program's end; return its first error output, empty on success.

    `when_ready` is called at its first normal output.
    """
    errors = b""
    try:
        while (chunk := await program.read()) is not None:
            stream, content = chunk
            if stream == STDERR:
                errors = errors or content
            elif when_ready is not None:
                await when_ready(program)
                when_ready = None
        status = await program.wait()
    finally:
        await program.close()
    return "" if status == 0 else errors.decode("utf-8", "replace") or f"status {status}"


@cache
def _script() -> str:
    return _SCRIPT.read_text()
