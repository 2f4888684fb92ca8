"""Measure each step of a connect session and its share of the whole.

Runs `polydev demo --json` under another name, so that a running demo is not disturbed.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
from pathlib import Path

from bench.common.effort import Effort
from bench.common.measure import shares

_POLYDEV = Path(__file__).parents[2] / "bin" / "polydev"
_LIMIT_S = 1800.0


async def connect_steps(effort: Effort) -> list[str]:
    """Return a row per step: seconds and share of the provider's total."""
    name = f"pdb-{secrets.token_hex(3)}"
    environment = os.environ | {
        "POLYDEV_DEMO_NAME": name,
        "POLYDEV_DEMO_STATE_DIR": f"/var/tmp/{name}",  # noqa: S108
        "PORT": str(_free_port()),
    }
    try:
        options = ("--provider", "codex") if effort.is_trial else ()
        output = await _polydev(environment, "demo", "--json", *options)
    finally:
        await _polydev(environment, "down", "--demo")
    report = json.loads(output.splitlines()[-1])
    if not report["ok"]:
        raise SystemExit(f"the demo failed: {report['error']}")
    rows: list[str] = []
    for provider in dict.fromkeys(step["provider"] for step in report["steps"]):
        if provider is not None:
            steps = [step for step in report["steps"] if step["provider"] == provider]
            rows += [f"-- {provider}", *shares([(s["step"], s["seconds"]) for s in steps])]
    return rows


async def _polydev(environment: dict[str, str], *arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        _POLYDEV, *arguments, env=environment, stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(_LIMIT_S):
        stdout, _ = await process.communicate()
    return stdout.decode()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
