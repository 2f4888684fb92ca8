"""Only one instance runs in a state folder."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from polydev.cli.supervisor.pidfile import Instance
from polydev.shared.errors import AlreadyRunning, Failed

HOLD = """
import sys, time
from pathlib import Path
from polydev.cli.supervisor.pidfile import Instance
{before}
with Instance(Path(sys.argv[1])).held():
    print("held", flush=True)
    time.sleep(600)
"""


def holder(folder: Path, before: str = "") -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(before=before), str(folder)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_missing_folder_has_no_instance(tmp_path: Path) -> None:
    instance = Instance(tmp_path / "never")
    assert instance.pid() is None
    assert not instance.has_run_here


def test_second_instance_is_refused(tmp_path: Path) -> None:
    process = holder(tmp_path)
    instance = Instance(tmp_path)
    assert instance.pid() == process.pid
    with pytest.raises(AlreadyRunning, match=f"process {process.pid}"), instance.held():
        pass
    process.kill()
    process.wait()
    assert instance.pid() is None, "a lock does not outlive its holder"
    with instance.held():
        assert instance.pid() == os.getpid()


def test_other_users_cannot_lock_the_folder(tmp_path: Path) -> None:
    instance = Instance(tmp_path)
    instance.claim()
    assert (tmp_path / "up.lock").stat().st_mode & 0o777 == 0o600
    (tmp_path / "up.lock").chmod(0o644)
    with instance.held():
        assert (tmp_path / "up.lock").stat().st_mode & 0o777 == 0o600


async def test_stop_waits_for_the_exit(tmp_path: Path) -> None:
    process = holder(tmp_path)
    reaping = asyncio.create_task(asyncio.to_thread(process.wait))
    assert await Instance(tmp_path).end(30)
    assert await reaping == -15
    assert not await Instance(tmp_path).end(30)


async def test_stop_gives_up_at_its_limit(tmp_path: Path) -> None:
    process = holder(tmp_path, "import signal; signal.signal(15, signal.SIG_IGN)")
    with pytest.raises(Failed, match="did not stop"):
        await Instance(tmp_path).end(0.3)
    process.kill()
    process.wait()
