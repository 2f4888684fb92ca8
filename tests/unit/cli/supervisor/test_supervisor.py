"""The supervisor, with real processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from polydev.cli.supervisor.supervisor import Listener, Log, Program, last_log_line, supervise
from polydev.shared.errors import Failed

SAY = "print('{message}', flush=True); "
FOREVER = "import time; time.sleep(600)"


class EventRecorder:
    """Recorded events, and a way to wait for one."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._more = asyncio.Event()
        self.listener = Listener(self._record, self._record)

    def _record(self, name: str, line: str) -> None:
        self.lines.append(f"{name}: {line}")
        self._more.set()

    async def wait_for(self, message: str) -> str:
        async with asyncio.timeout(120):
            while not (found := [line for line in self.lines if message in line]):
                self._more.clear()
                await self._more.wait()
        return found[-1]


def program(folder: Path, name: str, code: str, *, ready: bool = True) -> Program:
    async def is_ready() -> bool:
        return ready

    return Program(
        name, (sys.executable, "-c", code), dict(os.environ), folder / f"{name}.log", is_ready
    )


async def test_output_is_logged_and_forwarded(tmp_path: Path) -> None:
    recorder = EventRecorder()
    talker = program(tmp_path, "talker", SAY.format(message="here I am") + FOREVER)
    supervising = asyncio.create_task(supervise([talker], recorder.listener))
    assert await recorder.wait_for("here I am") == "talker: here I am"
    supervising.cancel()
    await asyncio.wait({supervising})
    assert (tmp_path / "talker.log").read_text() == "here I am\n"


async def test_dead_program_is_restarted(tmp_path: Path) -> None:
    recorder = EventRecorder()
    code = f"import os; print('pid', os.getpid(), flush=True); {FOREVER}"
    supervising = asyncio.create_task(
        supervise([program(tmp_path, "mortal", code)], recorder.listener)
    )
    first = int((await recorder.wait_for("pid")).split()[-1])
    os.kill(first, signal.SIGKILL)
    recorder.lines.remove(f"mortal: pid {first}")
    assert "killed by SIGKILL" in await recorder.wait_for("restarting in")
    assert int((await recorder.wait_for("pid")).split()[-1]) != first
    supervising.cancel()
    await asyncio.wait({supervising})


def protected_oom_score() -> str:
    """OOM score of a protected program; lower only if this user may set it."""
    with subprocess.Popen(["sleep", "100"]) as bystander:
        score = Path(f"/proc/{bystander.pid}/oom_score_adj")
        with contextlib.suppress(OSError):
            score.write_text("-900")
        found = score.read_text()
        bystander.kill()
    return found


async def test_oom_protection_is_set_where_allowed(tmp_path: Path) -> None:
    recorder = EventRecorder()
    code = f"import os; print('pid', os.getpid(), flush=True); {FOREVER}"
    spared = replace(program(tmp_path, "spared", code), is_oom_protected=True)
    supervising = asyncio.create_task(supervise([spared], recorder.listener))
    pid = int((await recorder.wait_for("pid")).split()[-1])
    assert Path(f"/proc/{pid}/oom_score_adj").read_text() == protected_oom_score()
    supervising.cancel()
    await asyncio.wait({supervising})


async def test_exit_before_ready_stops_everything(
    tmp_path: Path,
) -> None:
    recorder = EventRecorder()
    steady = program(
        tmp_path, "steady", f"import os; print('pid', os.getpid(), flush=True); {FOREVER}"
    )

    async def has_printed_pid() -> bool:
        return any("pid" in line for line in recorder.lines)

    steady = replace(steady, is_ready=has_printed_pid)
    wrong = program(
        tmp_path, "wrong", "print('polydev-wrong: KEY is not usable'); exit(3)", ready=False
    )
    expected = r"wrong exited during startup.*exit code 3\): KEY is not usable"
    with pytest.raises(Failed, match=expected):
        await supervise([steady, wrong], recorder.listener)
    pid = int((await recorder.wait_for("pid")).split()[-1])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_program_that_ignores_sigterm_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polydev.cli.supervisor.supervisor.GRACE_S", 0.3)
    recorder = EventRecorder()
    code = f"import signal; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); {FOREVER}"
    supervising = asyncio.create_task(
        supervise([program(tmp_path, "deaf", code)], recorder.listener)
    )
    await recorder.wait_for("deaf: deaf")
    supervising.cancel()
    _, pending = await asyncio.wait({supervising}, timeout=30)
    assert not pending


def test_log_size_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "full.log"
    with Log(path, file_bytes=1000, files=3) as log:
        for number in range(1000):
            log.write(b"line %d\n" % number)
    stored = sorted(tmp_path.iterdir())
    assert [file.name for file in stored] == ["full.log", "full.log.1", "full.log.2"]
    assert sum(file.stat().st_size for file in stored) <= 3000
    assert last_log_line(path) == "line 999"


def test_missing_log_has_no_last_line(tmp_path: Path) -> None:
    assert last_log_line(tmp_path / "never.log") == ""
