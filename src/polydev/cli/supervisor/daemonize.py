"""Start `polydev up` in the background and wait until it is ready.

The supervisor reports readiness over `NOTIFY_SOCKET`, as it does for systemd.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import tempfile
from pathlib import Path

from polydev.cli.supervisor.supervisor import last_log_line
from polydev.shared.errors import Failed

START_LIMIT_S = 240.0


async def start(state_dir: Path, limit_s: float = START_LIMIT_S) -> int:
    """Start `polydev up` in its own session; return its pid when ready.

    Raises: Failed, with its last log line, if it exits or is not ready in time.
    """
    logs = state_dir / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / "start.log"
    with tempfile.TemporaryDirectory(prefix="polydev-up-") as folder:
        address = Path(folder) / "notify"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
            notified.bind(str(address))
            notified.setblocking(False)
            process = await _spawn(log, address)
            ended = asyncio.create_task(process.wait())
            ready = asyncio.create_task(asyncio.get_running_loop().sock_recv(notified, 64))
            try:
                await asyncio.wait(
                    {ended, ready}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED
                )
                if ready.done():
                    return process.pid
                if not ended.done():
                    process.terminate()
                    await process.wait()
                    raise Failed(
                        f"Polydev was not ready in {limit_s:.0f} s", hint=f"See the logs in {logs}"
                    )
            except asyncio.CancelledError:
                process.terminate()
                await process.wait()
                raise
            finally:
                ready.cancel()
    raise Failed(
        last_log_line(log) or "Polydev exited during startup",
        hint="" if "log" in last_log_line(log) else f"See the logs in {logs}",
    )


async def _spawn(log: Path, address: Path) -> asyncio.subprocess.Process:
    with log.open("wb") as output:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "polydev.cli", "up", "--in-background"),
            env=os.environ | {"NOTIFY_SOCKET": str(address)},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
