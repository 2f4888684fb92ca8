"""Run a temporary host agent for benchmarks."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from polydev.cli.supervisor.shutdown import kill_in_namespace
from polydev.hostagent.system import namespaces
from polydev.shared.errors import HostUnreachable
from polydev.shared.host_client import HostClient

_START_LIMIT_S = 120.0


@dataclass(frozen=True, slots=True)
class BenchAgent:
    """Running host agent and its folders."""

    host: HostClient
    state_dir: Path
    images_dir: Path


@asynccontextmanager
async def running_agent(**settings: str) -> AsyncIterator[BenchAgent]:
    """Start an agent without an uplink; remove all that it created afterwards."""
    images_dir = Path(os.environ.get("POLYDEV_IMAGES_DIR", "/var/cache/polydev/golden-images"))
    state_dir = Path(tempfile.mkdtemp(prefix="pdb-", dir="/var/tmp"))
    name = f"pdb-{secrets.token_hex(3)}"
    environment = os.environ | {
        "POLYDEV_STATE_DIR": str(state_dir),
        "POLYDEV_MEMORY_KEY_DIR": str(state_dir),
        "POLYDEV_IMAGES_DIR": str(images_dir),
        "POLYDEV_NETNS": name,
        "POLYDEV_UPLINK": "none",
        "POLYDEV_EGRESS": "none",
        "POLYDEV_DNS": "",
        "POLYDEV_WARM_START": "false",
        **settings,
    }
    with (state_dir / "agent.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "polydev.hostagent"), env=environment, stdout=log, stderr=log
        )
    host = HostClient(state_dir / "sockets" / "hostd.sock")
    try:
        await _wait_for_health(host, process, state_dir / "agent.log")
        yield BenchAgent(host, state_dir, images_dir)
    finally:
        await host.aclose()
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await process.wait()
        if namespaces.exists(name):
            await kill_in_namespace(name)  # its machines outlive it
        await asyncio.to_thread(namespaces.remove, name)  # even if incomplete
        shutil.rmtree(state_dir, ignore_errors=True)


async def _wait_for_health(
    host: HostClient, process: asyncio.subprocess.Process, log: Path
) -> None:
    """Wait for the first response: the socket appears only when the agent is ready."""
    async with asyncio.timeout(_START_LIMIT_S):
        while process.returncode is None:
            try:
                await host.health()
            except HostUnreachable:
                await asyncio.sleep(0.05)
            else:
                return
    output = await asyncio.to_thread(log.read_text)
    raise SystemExit(f"the host agent failed to start: {output[-500:]}")
