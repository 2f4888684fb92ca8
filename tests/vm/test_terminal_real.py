"""Test a user's terminal and files in a real machine."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio
from real_machines import RealMachine, fleet
from saved_machine import SavedMachine

from polydev.controller.api.routes.machines.terminal import MAX_SESSIONS, terminal_request
from polydev.hostagent.channel.remote_process import RemoteProcess
from polydev.hostagent.settings import Egress, Uplink
from polydev.shared.errors import BadPath, FileRefused

pytestmark = [pytest.mark.vm, pytest.mark.asyncio(loop_scope="module")]

LIMIT_S = 60
NONE = {"uplink": Uplink.NONE, "egress": Egress.NONE, "dns": ()}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def machine(saved_machine: SavedMachine) -> AsyncIterator[RealMachine]:
    async with fleet(saved_machine, netns=f"pdt-{secrets.token_hex(3)}", **NONE) as machines:
        yield await machines.resume(saved_machine.vm_id)


class Screen:
    """Record of a terminal's output."""

    def __init__(self, process: RemoteProcess) -> None:
        self.process = process
        self.shown = b""

    async def until(self, text: bytes) -> None:
        async with asyncio.timeout(LIMIT_S):
            while text not in self.shown:
                chunk = await self.process.read()
                assert chunk is not None, self.shown
                self.shown += chunk[1]

    async def run(self, line: bytes, shows: bytes) -> None:
        await self.process.write(line + b"\r")
        await self.until(shows)


@asynccontextmanager
async def open_terminal(
    machine: RealMachine, name: str = "main", columns: int = 100, rows: int = 30
) -> AsyncIterator[Screen]:
    request = terminal_request(name, columns, rows)
    async with await machine.channel.exec(request) as process:
        yield Screen(process)


async def test_terminal_outlives_connection_and_replays_scrollback(
    machine: RealMachine,
) -> None:
    async with open_terminal(machine) as screen:
        await screen.run(b"stty size; echo $TERM $LANG; pwd", b"/root\r\n")
        assert b"30 100" in screen.shown
        assert b"tmux-256color C.UTF-8" in screen.shown
        assert b"\x1b[?1049h" not in screen.shown  # scrollback stays in the emulator
        await screen.run(b"for n in $(seq 1 300); do echo line-$n; done; echo f''in", b"fin")
        await screen.run("V='Grüße'; echo \"still $V\"".encode(), b"still Gr")
    async with open_terminal(machine, columns=90, rows=20) as screen:
        await screen.until("still Grüße".encode())
        assert b"S" not in re.findall(rb"\x1b\[\d+([A-Z])", screen.shown)
        assert re.search(rb"line-1 *\r\n", screen.shown)
        assert re.search(rb"line-200 *\r\n", screen.shown)
        await screen.process.resize(70, 25)
        await screen.run(b"sleep 1; stty size", b"25 70")
        await screen.process.write(b"exit\r")
        assert await asyncio.wait_for(_ended(screen.process), LIMIT_S) == 0


async def test_number_of_terminals_is_limited(machine: RealMachine) -> None:
    for number in range(MAX_SESSIONS):
        async with open_terminal(machine, f"t{number}") as screen:
            await screen.run(b"echo r''eady", b"ready")
    async with open_terminal(machine, "onemore") as screen:
        assert await asyncio.wait_for(_ended(screen.process), LIMIT_S) == 75
    async with open_terminal(machine, "t0") as screen:
        await screen.until(b"ready")
    ended = await machine.channel.run(["tmux", "-L", "polydev", "kill-server"])
    assert ended.exit_code == 0, ended.stderr


async def _ended(process: RemoteProcess) -> int:
    while await process.read() is not None:
        pass
    return await process.wait()


async def test_file_browser_works_on_real_machine(machine: RealMachine) -> None:
    files = machine.channel.file_browser()

    async def content() -> AsyncIterator[bytes]:
        for number in range(64):
            yield bytes([number]) * 65536

    await files.make_folder(b"/root/machines")
    size = await files.upload(b"/root/machines/big", content(), 2**24, replace=False)
    assert size == 64 * 65536
    download = await files.download(b"/root/machines/big", 2**24)
    read = b"".join([piece async for piece in download])
    await download.aclose()
    assert read == b"".join([piece async for piece in content()])
    await machine.channel.run(
        [
            "sh",
            "-c",
            "cd /root/machines; mkfifo pipe; truncate -s 9G sparse; ln -s /root deep; "
            "printf x > \"$(printf 'two\\nlines\\377')\"",
        ]
    )
    entries, more = await files.entries(b"/root/machines")
    kinds = {entry.name: entry.kind for entry in entries}
    assert not more
    assert kinds[b"pipe"] == "other"
    assert kinds[b"deep"] == "link"
    assert kinds[b"two\nlines\xff"] == "file"
    with pytest.raises(BadPath):
        await files.download(b"/root/machines/pipe", 2**24)
    with pytest.raises(FileRefused):
        await files.download(b"/root/machines/sparse", 2**24)
    with pytest.raises(FileRefused):
        await files.remove(b"/root/machines", with_content=False)
    await files.remove(b"/root/machines", with_content=True)
    entries, _ = await files.entries(b"/root")
    assert b"machines" not in {entry.name for entry in entries}
