"""Measure throughput, latency and memory of concurrent connect sessions.

A temporary host agent with simulated machines and a controller run as real processes on a database
of their own. 200 users connect at the same moment while a prober sends a page's requests. Then 200
sessions wait for their user, and the controller's memory is read. The benchmark shares the
machine's cores with the processes that it measures.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles

import aiohttp

from polydev.controller.store.engine.database import open_database
from polydev.controller.store.queries.accounts import users
from polydev.hostagent.system import namespaces
from polydev.shared.domain import User, UserId, now
from polydev.shared.host_client import HostClient

PROVIDER = "codex"
_LIMIT_S = 300.0
_PROBE_PAUSE_S = 0.02
_TOKEN = secrets.token_urlsafe(24)


@dataclass(frozen=True, slots=True)
class Load:
    """Results for one database."""

    database: str
    sessions: int
    seconds: float
    gets_ms: tuple[float, ...]
    """Durations of GET requests while the sessions run."""
    idle_mb: float
    waiting_kb: float
    """Resident memory of a session that waits for its user."""
    step_ms: dict[str, float]
    """Mean duration of each step."""

    def rows(self) -> list[str]:
        """Format the results and their goals."""
        percentiles = quantiles(self.gets_ms, n=100)
        rate = self.sessions / self.seconds
        facts = [
            ("sessions per second", rate, ">= 15", rate >= 15),
            ("GET p50, ms", percentiles[49], "", True),
            ("GET p99, ms", percentiles[98], "<= 50", percentiles[98] <= 50),
            ("controller idle, MB resident", self.idle_mb, "<= 120", self.idle_mb <= 120),
            ("waiting session, KB resident", self.waiting_kb, "<= 50", self.waiting_kb <= 50),
        ]
        rows = [
            f"{f'{self.database}: {name}':<44} {figure:>9.2f} {goal:>8} "
            f"{('ok' if met else 'MISSED') if goal else ''}"
            for name, figure, goal, met in facts
        ]
        steps = ", ".join(f"{name} {ms:.0f}" for name, ms in self.step_ms.items())
        return [*rows, f"{self.database}: mean ms of each step: {steps}"]


async def load(urls: tuple[str, str] | None, sessions: int) -> Load:
    """Measure running and waiting sessions, each on its own database (None: SQLite)."""
    first, second = urls or (None, None)
    async with simulated_world(first, login_end="credentials", channel="direct") as world:
        idle_mb = world.resident_kb() / 1024
        seconds, gets_ms, step_ms = await world.connect_all(sessions)
    async with simulated_world(second, login_end="never", channel="direct") as world:
        waiting_kb = await world.wait_all(sessions)
    name = "sqlite" if urls is None else "postgresql"
    return Load(name, sessions, seconds, tuple(gets_ms), idle_mb, waiting_kb, step_ms)


class World:
    """Running controller and its API client."""

    def __init__(self, client: aiohttp.ClientSession, url: str, pid: int, state_dir: Path) -> None:
        self._client, self._pid = client, pid
        self.url, self.token = url, _TOKEN
        self.state_dir = state_dir
        self.database_url: str | None = None

    def resident_kb(self) -> int:
        """The controller's resident memory. Source: proc(5), VmRSS."""
        status = Path(f"/proc/{self._pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if "VmRSS" in line)

    async def connect_all(self, count: int) -> tuple[float, list[float], dict[str, float]]:
        """Run all sessions to completion; return seconds, GETs' and steps' milliseconds."""
        user_ids = await self._users(count)
        gets_ms: list[float] = []
        probing = asyncio.create_task(self._probe(gets_ms))
        started = time.monotonic()
        session_ids = await asyncio.gather(*(self._start(user_id) for user_id in user_ids))
        async with asyncio.timeout(_LIMIT_S):
            await self._wait_for_status("completed", count)
        seconds = time.monotonic() - started
        probing.cancel()
        return seconds, gets_ms, await self._steps(session_ids)

    async def wait_all(self, count: int) -> float:
        """Start all sessions and wait for their prompts; return KB per session."""
        user_ids = await self._users(count)
        await asyncio.gather(*(self._start(user_id) for user_id in user_ids[: count // 10]))
        async with asyncio.timeout(_LIMIT_S):
            await self._wait_for_status("waiting_for_person", count // 10)
            before = self.resident_kb()  # after the first sessions filled the caches
            await asyncio.gather(*(self._start(user_id) for user_id in user_ids[count // 10 :]))
            await self._wait_for_status("waiting_for_person", count)
        return (self.resident_kb() - before) / (count - count // 10)

    async def request(self, method: str, path: str, body: object = None) -> object:
        async with self._client.request(method, self.url + path, json=body) as answer:
            text = await answer.text()
            if answer.status >= 400:
                raise SystemExit(f"{method} {path}: {answer.status} {text[:300]}")
            return json.loads(text)

    async def _users(self, count: int) -> list[str]:
        database = open_database(self.database_url, self.state_dir / "controller")
        ids = [secrets.token_hex(8) for _ in range(count)]
        async with database.write() as connection:
            for name in ids:
                await users.insert(connection, User(UserId(name), f"{name}@example.test", now()))
        await database.close()
        return ids

    async def _start(self, user_id: str) -> str:
        answer = await self.request(
            "POST", "/api/auth/start", {"provider": PROVIDER, "userId": user_id}
        )
        assert isinstance(answer, dict)
        return str(answer["sessionId"])

    async def _wait_for_status(self, status: str, count: int) -> None:
        """Poll the store until `count` sessions are in that state."""
        import sqlalchemy as sa

        from polydev.controller.store.tables import auth_sessions

        database = open_database(self.database_url, self.state_dir / "controller")
        query = sa.select(auth_sessions.c.status, sa.func.count()).group_by(auth_sessions.c.status)
        try:
            while True:
                async with database.read() as connection:
                    found = dict((await connection.execute(query)).tuples().all())
                if failed := found.get("failed"):
                    raise SystemExit(f"{failed} sessions failed; see {self.state_dir}")
                if found.get(status, 0) >= count:
                    return
                await asyncio.sleep(0.1)
        finally:
            await database.close()

    async def _probe(self, gets_ms: list[float]) -> None:
        """Send a page's requests, one after another."""
        paths = ["/api/vm/list", "/api/providers", "/api/auth/session/none", "/health"]
        while True:
            for path in paths:
                began = time.monotonic()
                async with self._client.get(self.url + path) as answer:
                    await answer.read()
                gets_ms.append((time.monotonic() - began) * 1000)
                await asyncio.sleep(_PROBE_PAUSE_S)

    async def _steps(self, session_ids: list[str]) -> dict[str, float]:
        import sqlalchemy as sa

        from polydev.controller.store.tables import session_steps

        database = open_database(self.database_url, self.state_dir / "controller")
        spent: dict[str, list[float]] = {}
        async with database.read() as connection:
            for row in await connection.execute(
                sa.select(session_steps).order_by(session_steps.c.started_at)
            ):
                if row.ended_at is not None and row.session_id in session_ids:
                    took = (row.ended_at - row.started_at).total_seconds() * 1000
                    spent.setdefault(row.step, []).append(took)
        await database.close()
        return {name: sum(times) / len(times) for name, times in spent.items()}


@asynccontextmanager
async def simulated_world(
    database_url: str | None = None, **simulation: str
) -> AsyncIterator[World]:
    """Start a host agent with simulated machines and a controller; remove both afterwards."""
    state_dir = Path(tempfile.mkdtemp(prefix="pdb-", dir="/var/tmp"))
    name = f"pdb-{secrets.token_hex(3)}"
    port = _free_port()
    environment = _environment(state_dir, name, port, simulation)
    if database_url is not None:
        environment["DATABASE_URL"] = database_url
    running: list[asyncio.subprocess.Process] = []
    try:
        running.append(
            await _start_program("polydev.hostagent", environment, state_dir / "hostd.log")
        )
        host = HostClient(state_dir / "sockets" / "hostd.sock")
        await _wait_until_ready(host.health, running[0])
        await host.aclose()
        running.append(
            await _start_program("polydev.controller", environment, state_dir / "controller.log")
        )
        headers = {"authorization": f"Bearer {_TOKEN}"}
        connector = aiohttp.TCPConnector(limit=64)
        async with aiohttp.ClientSession(headers=headers, connector=connector) as client:
            world = World(client, f"http://127.0.0.1:{port}", running[1].pid, state_dir)
            world.database_url = database_url
            await _wait_until_ready(lambda: world.request("GET", "/health"), running[1])
            yield world
    finally:
        for process in reversed(running):
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
            await process.wait()
        await asyncio.to_thread(namespaces.remove, name)
        if sys.exc_info()[0] is None:
            shutil.rmtree(state_dir, ignore_errors=True)


def _environment(
    state_dir: Path, netns_name: str, port: int, simulation: dict[str, str]
) -> dict[str, str]:
    return os.environ | {
        "POLYDEV_STATE_DIR": str(state_dir),
        "POLYDEV_NETNS": netns_name,
        "POLYDEV_UPLINK": "none",
        "POLYDEV_SUBNET": "192.168.0.0/16",
        "POLYDEV_DRIVER": "simulated",
        "POLYDEV_SIMULATION": json.dumps(simulation),
        "POLYDEV_ADMIN_TOKEN": _TOKEN,
        "ENCRYPTION_KEY": secrets.token_hex(32),
        "PORT": str(port),
    }


async def _start_program(
    module: str, environment: dict[str, str], log: Path
) -> asyncio.subprocess.Process:
    with log.open("wb") as file:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", module), env=environment, stdout=file, stderr=file
        )


async def _wait_until_ready(ask: object, process: asyncio.subprocess.Process) -> None:
    assert callable(ask)
    async with asyncio.timeout(60):
        while process.returncode is None:
            try:
                await ask()
            except Exception:
                await asyncio.sleep(0.05)
            else:
                return
    raise SystemExit("a process of the benchmark failed to start")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
