"""Run the guest scripts that turn machines into templates, clones and user machines.

The scripts (`src/polydev/guest/warm/`) are sent each time, so that they match this agent and not
the image. Their output is bounded.
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
"""Waits until a page is painted; runs in the guest's Python."""
_SHELL = ("/bin/busybox", "sh", "-c")
_PERL = ("perl", "-e")
_SEED_BYTES = 64
_OUTPUT_BYTES = 16 * 1024


async def settle(channel: GuestChannel) -> None:
    """Wait for the browser, and bring it to the state in which clones begin.

    The caller sets the time limit. Raises: GuestMisbehaved, ChannelLost.
    """
    await _run(
        channel,
        "settle",
        [*_SHELL, _text("settle.sh"), "polydev-settle", _text("wait_first_paint.py")],
    )


async def wait_first_paint(channel: GuestChannel) -> None:
    """Wait until the browser shows a page. The caller sets the time limit.

    Raises: GuestMisbehaved, ChannelLost.
    """
    argv = ["/usr/bin/python3", "-c", _text("wait_first_paint.py"), "polydev-first-paint"]
    await _run(channel, "first paint", argv)


async def renew(channel: GuestChannel, config_drive: bytes) -> None:
    """Make the guest the machine of a config drive. The caller sets the time limit.

    Raises: GuestMisbehaved, ChannelLost.
    """
    await _run(channel, "renew", [*_PERL, _text("renew.pl"), "polydev-renew"], config_drive)


async def start_rename(channel: GuestChannel) -> Script:
    """Start the script that renames a renewed guest; it then waits for the config drive.

    The caller closes it, and sets the time limit. Raises: GuestMisbehaved, ChannelLost.
    """
    argv = [*_PERL, _text("renew.pl"), "polydev-renew", "rename"]
    script = await _start(channel, "rename", argv)
    try:
        await script.wait_until_ready()
    except BaseException:
        await script.close()
        raise
    return script


class Script:
    """A running script in the guest, with bounded output."""

    def __init__(self, name: str, program: GuestProgram) -> None:
        self._name = name
        self._program = program
        self._errors, self._printed = b"", 0

    async def wait_until_ready(self) -> None:
        """Wait for its first output. Raises GuestMisbehaved if it ends before."""
        while (stream := await self._read()) is not None:
            if stream != STDERR:
                return
        await self.wait()
        raise GuestMisbehaved(f"`{self._name}` ended before it was ready")

    async def send(self, config_drive: bytes) -> None:
        """Send what `renew.pl` reads: a random seed, the current time, the config drive."""
        seed = os.urandom(_SEED_BYTES)
        await self._program.write(seed + f"{time.time():.9f}\n".encode() + config_drive)
        await self._program.write_eof()

    async def wait(self) -> None:
        """Wait for its end. Raises GuestMisbehaved if it failed."""
        while await self._read() is not None:
            pass
        if (status := await self._program.wait()) != 0:
            errors = printable(self._errors.decode("utf-8", "replace")) or "it did not say why"
            raise GuestMisbehaved(f"`{self._name}` ended with status {status}: {errors}")

    async def close(self) -> None:
        await self._program.close()

    async def _read(self) -> int | None:
        """Read some output, and return its stream; None at the end."""
        chunk = await self._program.read()
        if chunk is None:
            return None
        stream, content = chunk
        self._printed += len(content)
        if self._printed > _OUTPUT_BYTES:
            raise GuestMisbehaved(f"`{self._name}` printed more than {_OUTPUT_BYTES} bytes")
        if stream == STDERR:
            self._errors += content
        return stream


@cache
def digest() -> str:
    """Return a digest of the scripts: a template fits only those that built it."""
    texts = [path.read_bytes() for path in sorted(_SCRIPTS.iterdir()) if path.is_file()]
    return hashlib.sha256(b"\0".join(texts)).hexdigest()[:16]


@cache
def _text(name: str) -> str:
    return (_SCRIPTS / name).read_text()


async def _start(channel: GuestChannel, name: str, argv: list[str]) -> Script:
    return Script(name, await channel.exec(ExecRequest(argv=argv)))


async def _run(
    channel: GuestChannel, name: str, argv: list[str], config_drive: bytes | None = None
) -> None:
    """Run a script; send the drive once it is ready: emulated CPUs start programs slowly."""
    script = await _start(channel, name, argv)
    try:
        if config_drive is not None:
            await script.wait_until_ready()
            await script.send(config_drive)
        await script.wait()
    finally:
        await script.close()
