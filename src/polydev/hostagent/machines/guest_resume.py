"""What a guest is told before it sleeps, and when it is awake: through its channel, by its host.

`hibernation.py` and `recovery.py` call it. The guest may have been changed by its owner in any way,
so all of it is tried, bounded, and not relied upon.
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

AWAKE = "polydev-awake"
"""What the program is called in the guest's list of processes."""
_SCRIPT = Path(__file__).resolve().parents[2] / "guest" / "after_resume.sh"
_FLUSH_LIMIT_S = 10.0
_AWAKEN_LIMIT_S = 20.0
_RANDOMNESS_BYTES = 64


async def flush(machine: RunningMachine) -> None:
    """Have the guest write to its disk what it still holds, then let go of its channel.

    A guest that does not is saved all the same: what it holds is in its memory. Programs that run
    for somebody outside end with the channel, as they would when it is found dead later.
    """
    try:
        async with asyncio.timeout(_FLUSH_LIMIT_S):
            await _ended(await machine.channel.exec(ExecRequest(argv=["sync"])))
    except (PolydevError, TimeoutError) as error:
        log.info("%s did not write out what it holds: %s", machine.folder.vm_id, error)
    with contextlib.suppress(Exception):
        await machine.channel.close()


async def awaken(machine: RunningMachine) -> None:
    """Renew what went stale while the guest stood still; that it could not be is only told."""
    try:
        await renew(machine.channel)
    except PolydevError as error:
        log.warning("%s is awake, but: %s", machine.folder.vm_id, error.message)


async def renew(channel: GuestChannel) -> None:
    """Give a guest that stood still the time, fresh randomness, and an end to dead connections.

    Raises: ChannelLost, GuestMisbehaved.
    """
    try:
        async with asyncio.timeout(_AWAKEN_LIMIT_S):
            await channel.connect(_AWAKEN_LIMIT_S)
            program = await channel.exec(ExecRequest(argv=["sh", "-c", _script(), AWAKE]))
            said = await _ended(program, _told)
    except TimeoutError:
        raise GuestMisbehaved("Its clock and randomness were not renewed in time") from None
    if said:
        raise GuestMisbehaved(f"Its clock or randomness was not renewed: {printable(said)}")


async def _told(program: GuestProgram) -> None:
    """What after_resume.sh is told once it is ready: the time is that of this moment."""
    await program.write(os.urandom(_RANDOMNESS_BYTES) + f"{time.time():.9f}".encode())
    await program.write_eof()


async def _ended(
    program: GuestProgram, when_ready: Callable[[GuestProgram], Awaitable[None]] | None = None
) -> str:
    """Wait for a program's end: empty if that was good, else the first words of complaint.

    `when_ready` is called when it has said something that is none.
    """
    words = b""
    try:
        while (chunk := await program.read()) is not None:
            stream, content = chunk
            if stream == STDERR:
                words = words or content
            elif when_ready is not None:
                await when_ready(program)
                when_ready = None
        status = await program.wait()
    finally:
        await program.close()
    return "" if status == 0 else words.decode("utf-8", "replace") or f"status {status}"


@cache
def _script() -> str:
    return _SCRIPT.read_text()
