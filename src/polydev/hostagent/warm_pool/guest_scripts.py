"""What is said to the guest: the scripts that make a template of a machine, a machine of a clone,
and somebody's machine of one that waited, and how their end is read.

`making.py`, `cloning.py` and `waiting.py` call it. The scripts (`src/polydev/guest/warm/`) are sent
along each time, so that they fit this agent and not the image. What a guest prints is bounded.
"""

from __future__ import annotations

import hashlib
import os
import time
from functools import cache
from pathlib import Path

from polydev.hostagent.channel.contract import GuestChannel, GuestProgram
from polydev.hostagent.channel.ssh_errors import printable
from polydev.shared.errors import GuestMisbehaved
from polydev.shared.host_protocol import STDERR, ExecRequest

_SCRIPTS = Path(__file__).resolve().parents[2] / "guest" / "warm"
WAIT_FIRST_PAINT = _SCRIPTS / "wait_first_paint.py"
"""Ends when a page is painted; for the guest's own Python."""
_SHELL = ("/bin/busybox", "sh", "-c")
_PERL = ("perl", "-e")
_SEED_BYTES = 64
_OUTPUT_BYTES = 16 * 1024


async def settle(channel: GuestChannel) -> None:
    """Wait until the machine's browser is up, and bring it to where its clones begin.

    The caller sets the limit. Raises: GuestMisbehaved, ChannelLost.
    """
    await _run(
        channel,
        "settle",
        [*_SHELL, _text("settle.sh"), "polydev-settle", _text("wait_first_paint.py")],
    )


async def wait_first_paint(channel: GuestChannel) -> None:
    """Wait until the machine's browser shows a page. The caller sets the limit.

    Raises: GuestMisbehaved, ChannelLost.
    """
    argv = ["/usr/bin/python3", "-c", _text("wait_first_paint.py"), "polydev-first-paint"]
    await _run(channel, "first paint", argv)


async def renew(channel: GuestChannel, config_drive: bytes) -> None:
    """Make the guest the machine that the config drive describes. The caller sets the limit.

    Raises: GuestMisbehaved, ChannelLost.
    """
    await _run(channel, "renew", [*_PERL, _text("renew.pl"), "polydev-renew"], config_drive)


async def renaming(channel: GuestChannel) -> Script:
    """What makes a renewed guest a machine of another name and token: started, and ready to be told
    which. The caller closes it, and sets the limit. Raises: GuestMisbehaved, ChannelLost.
    """
    argv = [*_PERL, _text("renew.pl"), "polydev-renew", "rename"]
    script = await _started(channel, "rename", argv)
    try:
        await script.ready()
    except BaseException:
        await script.close()
        raise
    return script


class Script:
    """A program in the guest. What it prints is bounded; it has said nothing wrong so far."""

    def __init__(self, name: str, program: GuestProgram) -> None:
        self._name = name
        self._program = program
        self._words, self._printed = b"", 0

    async def ready(self) -> None:
        """Return when it has said something. Raises: GuestMisbehaved if it ends before."""
        while (stream := await self._read()) is not None:
            if stream != STDERR:
                return
        await self.ended()
        raise GuestMisbehaved(f"`{self._name}` ended before it was told anything")

    async def tell(self, config_drive: bytes) -> None:
        """What `renew.pl` reads. The time is that of this moment."""
        seed = os.urandom(_SEED_BYTES)
        await self._program.write(seed + f"{time.time():.9f}\n".encode() + config_drive)
        await self._program.write_eof()

    async def ended(self) -> None:
        """Wait for its end. Raises: GuestMisbehaved unless that is good."""
        while await self._read() is not None:
            pass
        if (status := await self._program.wait()) != 0:
            said = printable(self._words.decode("utf-8", "replace")) or "it did not say why"
            raise GuestMisbehaved(f"`{self._name}` ended with status {status}: {said}")

    async def close(self) -> None:
        await self._program.close()

    async def _read(self) -> int | None:
        """On which stream it said something; None at its end."""
        chunk = await self._program.read()
        if chunk is None:
            return None
        stream, content = chunk
        self._printed += len(content)
        if self._printed > _OUTPUT_BYTES:
            raise GuestMisbehaved(f"`{self._name}` printed more than {_OUTPUT_BYTES} bytes")
        if stream == STDERR:
            self._words += content
        return stream


@cache
def digest() -> str:
    """Changes with the scripts: a template fits only those that made it. Blocks once."""
    texts = [path.read_bytes() for path in sorted(_SCRIPTS.iterdir()) if path.is_file()]
    return hashlib.sha256(b"\0".join(texts)).hexdigest()[:16]


@cache
def _text(name: str) -> str:
    return (_SCRIPTS / name).read_text()


async def _started(channel: GuestChannel, name: str, argv: list[str]) -> Script:
    return Script(name, await channel.exec(ExecRequest(argv=argv)))


async def _run(
    channel: GuestChannel, name: str, argv: list[str], config_drive: bytes | None = None
) -> None:
    """Run a program to its end. It is told of the drive once it is ready: where processors are
    emulated, programs start slowly."""
    script = await _started(channel, name, argv)
    try:
        if config_drive is not None:
            await script.ready()
            await script.tell(config_drive)
        await script.ended()
    finally:
        await script.close()
