"""Process supervisor: start programs, restart them and stop them.

A program that exits before it was ever ready stops everything, because a restart would fail again
(a bad setting, a wrong key). One that exits later is restarted, with a growing delay. Output goes
to log files of bounded size.
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
from polydev.shared.sd_notify import notify_ready

LOG_BYTES = 8 * 1024 * 1024
LOG_FILES = 3
LINE_BYTES = 64 * 1024
GRACE_S = 20.0
FIRST_DELAY_S = 0.2
MAX_DELAY_S = 10.0
_OOM_SCORE_ADJ = -900
RESET_AFTER_S = 60.0
"""Uptime after which the restart delay is reset."""


@dataclass(frozen=True, slots=True)
class Program:
    """Program to keep running."""

    name: str
    argv: tuple[str, ...]
    env: dict[str, str]
    log: Path
    is_ready: Callable[[], Awaitable[bool]]
    start_limit_s: float = 120
    is_oom_protected: bool = False
    """Make the kernel's OOM killer choose other processes first."""


LineHandler = Callable[[str, str], None]
"""Takes the name of a program and a line."""


@dataclass(frozen=True, slots=True)
class Listener:
    """Handlers of events of the programs, and of the programs' own output."""

    on_event: LineHandler
    on_output: LineHandler


async def supervise(programs: Sequence[Program], listener: Listener) -> None:
    """Keep the programs running until cancelled. Starts in order, stops in reverse.

    Raises: Failed, with its last log line, if a program exits before it is first ready.
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
        notify_ready()
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
    delay_s = FIRST_DELAY_S
    while True:
        began = time.monotonic()
        run = await ProgramRun.start(program, listener.on_output)
        try:
            if not started.is_set():
                await run.until_ready()
                started.set()
            code = await run.ended()
        finally:
            await run.end()
        if time.monotonic() - began > RESET_AFTER_S:
            delay_s = FIRST_DELAY_S
        listener.on_event(
            program.name, f"exited ({describe_exit(code)}); restarting in {delay_s:.1f} s"
        )
        await asyncio.sleep(delay_s)
        delay_s = min(delay_s * 2, MAX_DELAY_S)


class ProgramRun:
    """One process of a program; its output goes to the log."""

    def __init__(
        self, program: Program, process: asyncio.subprocess.Process, on_output: LineHandler
    ) -> None:
        self._program = program
        self._process = process
        self._reading = asyncio.create_task(self._read(on_output))

    @classmethod
    async def start(cls, program: Program, on_output: LineHandler) -> ProgramRun:
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
        return cls(program, process, on_output)

    async def until_ready(self) -> None:
        """Wait until the program is ready. Raises Failed if it exits or takes too long."""
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
            why = f"was not ready in {self._program.start_limit_s:.0f} s"
        else:
            await self._reading
            why = f"exited during startup ({describe_exit(self._process.returncode)})"
        message = last_log_line(self._program.log)
        raise Failed(
            f"{self._program.name} {why}" + (f": {message}" if message else ""),
            hint=f"See its log: {self._program.log}",
        )

    async def _answers(self) -> None:
        while not await self._program.is_ready():  # noqa: ASYNC110  (no notification)
            await asyncio.sleep(0.1)

    async def ended(self) -> int:
        code = await self._process.wait()
        await self._reading
        return code

    async def end(self) -> None:
        """Terminate the process, and kill it after a grace period."""
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

    async def _read(self, on_output: LineHandler) -> None:
        stream = self._process.stdout
        assert stream is not None  # noqa: S101  (a pipe)
        with Log(self._program.log) as log:
            while line := await _line(stream):
                log.write(line)
                on_output(self._program.name, line.decode(errors="replace").rstrip())


def _protect_from_oom(pid: int) -> None:
    """Lower the OOM score; does nothing without privilege. Source: proc_pid_oom_score_adj(5)."""
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
    """Log file with rotation."""

    def __init__(self, path: Path, file_bytes: int = LOG_BYTES, files: int = LOG_FILES) -> None:
        self._path, self._file_bytes, self._files = path, file_bytes, files
        self._file = path.open("ab", buffering=0)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, line: bytes) -> None:
        if self._file.tell() + len(line) > self._file_bytes:
            self._rotate()
        self._file.write(line)

    def _rotate(self) -> None:
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
    """Describe an exit status."""
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
