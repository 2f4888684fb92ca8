"""A real controller process for tests, which can be killed at an exact point of a workflow.

Run as a program it is the controller, with an observer of workflows' steps that kills the process
or fails the step where it is told to, once. Imported it starts and ends such processes.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from polydev.errors import LoginFailed
from polydev.hosts import Host

TOKEN = "a-token-of-the-tests-only"
KEY = "an encryption key of the tests only"
ENDS = {"completed", "failed", "expired", "cancelled"}
_LIMIT_S = 60


@dataclass(frozen=True)
class At:
    """A point of a workflow."""

    step: str
    point: str

    def __str__(self) -> str:
        return f"{self.point} {self.step}"


class ControllerProcess:
    """One controller that may be killed and started again over the same state."""

    def __init__(self, state_dir: Path, **env: str) -> None:
        self.state_dir = state_dir
        self.log = state_dir.parent / "controller.log"
        self.port = _free_port()
        self.env = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            "POLYDEV_STATE_DIR": str(state_dir),
            "PORT": str(self.port),
            "ENCRYPTION_KEY": KEY,
            "POLYDEV_ADMIN_TOKEN": TOKEN,
            **env,
        }
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, *, kill: At | None = None, fail: At | None = None) -> None:
        """Start it; it kills itself at `kill`, and fails the step at `fail`."""
        orders = {"kill": vars(kill) if kill else None, "fail": vars(fail) if fail else None}
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, __file__, json.dumps(orders)),
                env=self.env,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    async def ended(self) -> int:
        assert self._process is not None
        return await asyncio.wait_for(self._process.wait(), _LIMIT_S)

    async def end(self) -> int:
        """SIGTERM, as a service manager ends it."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return await self.ended()

    async def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """A request; the socket takes it also while the controller still starts."""
        async with self.client() as client:
            answer = await client.request(method, path, json=body)
            assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
            return answer.json()

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{self.port}",
            headers={"authorization": f"Bearer {TOKEN}"},
            transport=httpx.AsyncHTTPTransport(retries=8),
            timeout=_LIMIT_S,
        )

    async def connect(self, provider: str) -> str:
        """Start a connect session, and return its id."""
        started = await self.ask("POST", "/api/auth/start", {"provider": provider})
        return str(started["sessionId"])

    async def session(self, session_id: str) -> dict[str, Any]:
        found: dict[str, Any] = await self.ask("GET", f"/api/auth/session/{session_id}")
        return found

    async def until(self, session_id: str, *statuses: str) -> dict[str, Any]:
        """The session once it is in one of the states, or at an end."""
        wanted = set(statuses) | ENDS
        async with asyncio.timeout(_LIMIT_S):
            view = await self.session(session_id)
            while view["status"] not in wanted:
                path = f"/api/auth/session/{session_id}?after={view['version']}&wait=20"
                view = await self.ask("GET", path)
        return view

    def host(self) -> Host:
        return Host(self.state_dir / "sockets" / "hostd.sock")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _run(orders: dict[str, dict[str, str] | None]) -> None:
    from polydev import app, logging_setup
    from polydev.settings import ControllerSettings, read

    kill, fail = (At(**it) if (it := orders[name]) else None for name in ("kill", "fail"))

    def on_point(step: str, point: str) -> None:
        if At(step, point) == kill:
            os.kill(os.getpid(), signal.SIGKILL)
        if At(step, point) == fail:
            raise LoginFailed(f"The test failed it {fail}")

    logging_setup.set_up(as_json=False)
    app.run(read(ControllerSettings), on_point)


if __name__ == "__main__":
    _run(json.loads(sys.argv[1]))
