"""A real controller process for tests, which can be killed at an exact point of a workflow.

Run as a program it is the controller, with an observer of workflows' steps that obeys the orders in
a file: kill the process or fail the step at a point, once; do every step twice. Imported it starts
and ends such processes.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping
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
        self._orders = state_dir.parent / "orders.json"
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

    def order(self, *, kill: At | None = None, fail: At | None = None) -> None:
        """Have it kill itself at one point, or fail the step at another; once each."""
        orders = {"kill": kill and vars(kill), "fail": fail and vars(fail)}
        self._orders.write_text(json.dumps(orders))

    async def start(self, *, twice: bool = False) -> None:
        """Start it; `twice` has it do every step twice."""
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, __file__, str(self._orders), "twice" if twice else "once"),
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


def _obeying(orders: Path) -> Callable[[str, str], None]:
    def on_point(step: str, point: str) -> None:
        if not orders.exists():
            return
        told = json.loads(orders.read_text())
        for what in ("kill", "fail"):
            if told[what] == {"step": step, "point": point}:
                orders.write_text(json.dumps({**told, what: None}))
                if what == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise LoginFailed(f"The test failed it {point} {step}")

    return on_point


def _do_steps_twice() -> None:
    from polydev.workflows import saga

    once = saga._again

    async def twice(work: Callable[[], Awaitable[None]], *how: Any) -> None:
        await once(work, *how)
        await once(work, *how)

    saga._again = twice  # type: ignore[assignment]


def _run(orders: Path, times: str) -> None:
    from polydev import app, logging_setup
    from polydev.settings import ControllerSettings, read

    if times == "twice":
        _do_steps_twice()
    logging_setup.set_up(as_json=False)
    app.run(read(ControllerSettings), _obeying(orders))


if __name__ == "__main__":
    _run(Path(sys.argv[1]), sys.argv[2])
