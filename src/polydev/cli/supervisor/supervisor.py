"""Keeps the processes of one Polydev running: starts them, starts them again, ends them.

`up` calls it with the programs to run. A program that ends before it was ever ready ends
everything, since the same would happen again (a bad setting, a wrong key); one that ends later is
started again, a little later each time. What programs say goes into log files of bounded size.
It must not know what the programs do.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from polydev.shared.errors import Failed, MissingTool
from polydev.shared.sd_notify import tell_ready

LOG_BYTES = 8 * 1024 * 1024
LOG_FILES = 3
LINE_BYTES = 64 * 1024
GRACE_S = 20.0
FIRST_DELAY_S = 0.2
MAX_DELAY_S = 10.0
_OOM_SCORE_ADJ = -900
RESET_AFTER_S = 60.0
"""A program that ran this long starts again without waiting."""


@dataclass(frozen=True, slots=True)
class Program:
    """A process to be kept running."""

    name: str
    argv: tuple[str, ...]
    env: dict[str, str]
    log: Path
    is_ready: Callable[[], Awaitable[bool]]
    start_limit_s: float = 120
    is_oom_protected: bool = False
    """When memory runs out, the kernel ends other programs first."""


Say = Callable[[str, str], None]
"""Called with a program's name and a line."""


@dataclass(frozen=True, slots=True)
class Listener:
    """Who hears of it: `tell` what happens to the programs, `echo` what they say themselves."""

    tell: Say
    echo: Say


async def supervise(programs: Sequence[Program], listener: Listener) -> None:
    """Keep the programs running until cancelled; start in order, end in the opposite order.

    Raises: Failed, with its last words, when a program ends before it was ready for the first time.
    """
    keepers: list[asyncio.Task[None]] = []
    try:
        for program in programs:
            started = asyncio.Event()
            keepers.append(asyncio.create_task(_keep_running(program, listener, started)))
            ready = asyncio.create_task(started.wait())
            await asyncio.wait({ready, *keepers}, return_when=asyncio.FIRST_COMPLETED)
            ready.cancel()
            _raise_if_failed(keepers)
        tell_ready()
        await asyncio.wait(keepers, return_when=asyncio.FIRST_COMPLETED)
        _raise_if_failed(keepers)
    finally:
        for keeper in reversed(keepers):
            keeper.cancel()
            await asyncio.wait({keeper})


def _raise_if_failed(keepers: Sequence[asyncio.Task[None]]) -> None:
    for keeper in keepers:
        if keeper.done():
            keeper.result()


async def _keep_running(program: Program, listener: Listener, started: asyncio.Event) -> None:
    pause_s = FIRST_DELAY_S
    while True:
        began = time.monotonic()
        run = await Run.start(program, listener.echo)
        try:
            if not started.is_set():
                await run.until_ready()
                started.set()
            code = await run.ended()
        finally:
            await run.end()
        if time.monotonic() - began > RESET_AFTER_S:
            pause_s = FIRST_DELAY_S
        listener.tell(
            program.name, f"ended ({describe_exit(code)}); starting it again in {pause_s:.1f} s"
        )
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, MAX_DELAY_S)


class Run:
    """One process of a program, with what it says on its way into the log."""

    def __init__(self, program: Program, process: asyncio.subprocess.Process, echo: Say) -> None:
        self._program = program
        self._process = process
        self._reading = asyncio.create_task(self._read(echo))

    @classmethod
    async def start(cls, program: Program, echo: Say) -> Run:
        try:
            process = await asyncio.create_subprocess_exec(
                *program.argv,
                env=program.env,
                cwd="/",
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
                limit=LINE_BYTES,
            )
        except FileNotFoundError:
            raise MissingTool(f"{program.argv[0]} is not on PATH") from None
        if program.is_oom_protected:
            await asyncio.to_thread(_protect_from_oom, process.pid)
        return cls(program, process, echo)

    async def until_ready(self) -> None:
        """Return when the program answers. Raises Failed if it ends before, or takes too long."""
        ended = asyncio.create_task(self._process.wait())
        ready = asyncio.create_task(self._answers())
        try:
            await asyncio.wait(
                {ended, ready},
                timeout=self._program.start_limit_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if ready.done():
                return ready.result()
        finally:
            ended.cancel()
            ready.cancel()
        if self._process.returncode is None:
            why = f"has not answered in {self._program.start_limit_s:.0f} s"
        else:
            await self._reading
            why = f"ended at its start ({describe_exit(self._process.returncode)})"
        words = last_log_line(self._program.log)
        raise Failed(
            f"{self._program.name} {why}" + (f": {words}" if words else ""),
            hint=f"Its log is {self._program.log}",
        )

    async def _answers(self) -> None:
        while not await self._program.is_ready():  # noqa: ASYNC110  (nothing tells of a server)
            await asyncio.sleep(0.1)

    async def ended(self) -> int:
        code = await self._process.wait()
        await self._reading
        return code

    async def end(self) -> None:
        """End the process if it still runs: asked first, killed after a grace time."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), GRACE_S)
            except TimeoutError:
                with suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                await self._process.wait()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._reading, 1)

    async def _read(self, echo: Say) -> None:
        stream = self._process.stdout
        assert stream is not None  # noqa: S101  (asked for above)
        with Log(self._program.log) as log:
            while line := await _line(stream):
                log.write(line)
                echo(self._program.name, line.decode(errors="replace").rstrip())


def _protect_from_oom(pid: int) -> None:
    """Source: proc_pid_oom_score_adj(5). Without the right to do so it is as any program."""
    with suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(_OOM_SCORE_ADJ))


async def _line(stream: asyncio.StreamReader) -> bytes:
    try:
        return await stream.readuntil()
    except asyncio.IncompleteReadError as error:
        return error.partial
    except asyncio.LimitOverrunError:
        return await stream.read(LINE_BYTES)


class Log:
    """A log file of bounded size: when it is full it is renamed, and the oldest goes."""

    def __init__(self, path: Path, file_bytes: int = LOG_BYTES, files: int = LOG_FILES) -> None:
        self._path, self._file_bytes, self._files = path, file_bytes, files
        self._file = path.open("ab", buffering=0)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, line: bytes) -> None:
        if self._file.tell() + len(line) > self._file_bytes:
            self._turn()
        self._file.write(line)

    def _turn(self) -> None:
        self._file.close()
        for number in range(self._files - 1, 0, -1):
            older = self._numbered(number - 1)
            if older.exists():
                older.rename(self._numbered(number))
        self._file = self._path.open("ab", buffering=0)

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}") if number else self._path


def last_log_line(log: Path) -> str:
    """The last line of a log that says something, shortened, without the program's name."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            lines = file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return ""
    last = next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")
    return re.sub(r"^polydev(-\w+)?: ", "", last)


def describe_exit(code: int) -> str:
    """An exit status in words."""
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
