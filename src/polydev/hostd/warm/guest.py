"""What is said to the guest: the two scripts that make a template of a machine, and a machine of a
clone, and how their end is read.

`making.py` and `cloning.py` call it. The scripts (`src/polydev/guest/warm/`) are sent along each
time, so that they fit this agent and not the image. What a guest prints is bounded.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

from polydev.errors import GuestMisbehaved
from polydev.hostapi import STDERR, ExecRequest
from polydev.hostd.channel.failures import shown
from polydev.hostd.site import Channel

_SCRIPTS = Path(__file__).resolve().parents[2] / "guest" / "warm"
PAINTED = _SCRIPTS / "painted.py"
"""Ends when a page is painted; for the guest's own Python."""
_SHELL = ("/bin/busybox", "sh", "-c")
_SEED_BYTES = 64
_OUTPUT_BYTES = 16 * 1024


async def settle(channel: Channel) -> None:
    """Wait until the machine's browser is up, and bring it to where its clones begin.

    The caller sets the limit. Raises: GuestMisbehaved, ChannelLost.
    """
    await _run(
        channel, "settle", [*_SHELL, _text("settle.sh"), "polydev-settle", _text("painted.py")]
    )


async def renew(channel: Channel, config_drive: bytes) -> None:
    """Make the guest the machine that the config drive describes. The caller sets the limit.

    Raises: GuestMisbehaved, ChannelLost.
    """
    argv = ["perl", "-e", _text("renew.pl"), "polydev-renew"]

    def told() -> bytes:
        """The time is that of this moment: where processors are emulated, programs start slowly."""
        return os.urandom(_SEED_BYTES) + f"{time.time():.9f}\n".encode() + config_drive

    await _run(channel, "renew", argv, told)


@cache
def digest() -> str:
    """Changes with the scripts: a template fits only those that made it. Blocks once."""
    texts = [path.read_bytes() for path in sorted(_SCRIPTS.iterdir()) if path.is_file()]
    return hashlib.sha256(b"\0".join(texts)).hexdigest()[:16]


@cache
def _text(name: str) -> str:
    return (_SCRIPTS / name).read_text()


async def _run(
    channel: Channel, name: str, argv: list[str], told: Callable[[], bytes] | None = None
) -> None:
    """Run a program to its end; it is `told` something as soon as it says anything."""
    program = await channel.exec(ExecRequest(argv=argv))
    try:
        words, printed = b"", 0
        while (chunk := await program.read()) is not None:
            stream, content = chunk
            printed += len(content)
            if printed > _OUTPUT_BYTES:
                raise GuestMisbehaved(f"`{name}` printed more than {_OUTPUT_BYTES} bytes")
            if stream == STDERR:
                words += content
            elif told is not None:
                await program.write(told())
                await program.write_eof()
                told = None
        if (status := await program.wait()) != 0:
            said = shown(words.decode("utf-8", "replace")) or "it did not say why"
            raise GuestMisbehaved(f"`{name}` ended with status {status}: {said}")
    finally:
        await program.close()
