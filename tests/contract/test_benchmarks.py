"""Every benchmark starts, and ends with its rows: one short round of each on simulated machines."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
ROWS = {
    "disk": "new disk: .* MiB allocated",
    "machine": "machine: create to answering channel",
    "parts": "browser machine: ",
    "memory": "memory after some work, idle",
    "many": "2 machines at once",
    "hibernate": "hibernate: resume against cold create",
    "warm": "browser: create to first page, cloned",
    "connect": "-- gemini_cli",
    "chat": "chat relay adds",
    "terminal": "terminal through the API",
    "load": "postgresql: sessions a second",
}

pytestmark = pytest.mark.vm


def test_every_benchmark_runs() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "bench", "--trial"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    missing = [name for name, row in ROWS.items() if not re.search(row, ended.stdout)]
    assert missing == [], ended.stdout
