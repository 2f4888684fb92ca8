"""Every benchmark completes a trial run and prints its rows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from bench.__main__ import NAMES

CHECKOUT = Path(__file__).parents[2]
ROWS = {
    "disk": "new disk: .* MiB allocated",
    "machine": "machine: create until the channel answers",
    "parts": "browser machine: ",
    "memory": "memory after some work, idle",
    "many": "2 concurrent machines",
    "hibernate": "hibernate: resume against cold create",
    "warm": "browser: create to first page, cloned",
    "connect": "-- codex",
    "chat": "chat relay, added latency",
    "terminal": "terminal through the API",
    "load": "postgresql: sessions per second",
}
"""A row of each benchmark."""

_GROUPS = [[*ROWS][:7], [*ROWS][7:8], [*ROWS][8:10], [*ROWS][10:]]
"""Groups that run in one process, by shared host agent and duration."""

pytestmark = pytest.mark.vm


def test_every_benchmark_is_listed() -> None:
    assert {*ROWS} == {*NAMES}


@pytest.mark.parametrize("names", _GROUPS, ids="-".join)
def test_every_benchmark_runs(names: list[str]) -> None:
    # On timeout, SIGTERM lets the benchmark clean up; SIGKILL would not.
    ended = subprocess.run(
        ["timeout", "--kill-after=20", "540", sys.executable, "-m", "bench", "--trial", *names],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    missing = [name for name in names if not re.search(ROWS[name], ended.stdout)]
    assert missing == [], ended.stdout
