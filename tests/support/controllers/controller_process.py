"""A controller process that tests can kill at an exact step.

`ControllerProcess` starts and ends it. `main` runs in it: the controller, with an observer of
workflow steps. The observer reads orders from a file (kill the process or fail a step at a point,
once each) and reports the registered workflows with their steps.
"""

from __future__ import annotations

import asyncio
import copy
import json
import os
import secrets
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import forks
import httpx
import sqlite_template
from ports import ReservedPort

from polydev.shared.errors import LoginFailed
from polydev.shared.host_client import HostClient

# Unique per test run: parallel runs search the same places for their secrets.
TOKEN = f"a-token-of-the-tests-only-{secrets.token_hex(8)}"
KEY = f"an encryption key of the tests only {secrets.token_hex(8)}"
ENDS = {"completed", "failed", "expired", "cancelled"}
_LIMIT_S = 120
_PAUSE_S = 0.02


@dataclass(frozen=True)
class At:
    """A point of a workflow."""

    step: str
    point: str

    def __str__(self) -> str:
        return f"{self.point} {self.step}"


@dataclass(frozen=True)
class SagaTable:
    """A saga's step names: all forward steps, the reversible ones, the final ones."""

    steps: list[str]
    undone: list[str]
    always: list[str]


class ControllerProcess:
    """A controller that can be killed and restarted over the same state.

    Controllers of one database share a state folder; `name` distinguishes them.
    """

    def __init__(self, state_dir: Path, name: str = "controller", **env: str) -> None:
        self.state_dir = state_dir
        self.log = state_dir.parent / f"{name}.log"
        self._orders = state_dir.parent / f"{name}.orders"
        self._sagas = state_dir.parent / f"{name}.sagas"
        self._hold = state_dir.parent / f"{name}.hold"
        self._port = ReservedPort()
        self.env = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "POLYDEV_STATE_DIR": str(state_dir),
            "PORT": str(self.port),
            "ENCRYPTION_KEY": KEY,
            "POLYDEV_ADMIN_TOKEN": TOKEN,
            **{name: value for name, value in env.items() if name != "PORT"},
        }
        self.token = TOKEN
        self.is_as_shipped = False
        """True if it creates its own database and hashes at the product's cost."""
        self._process: forks.Forked | None = None

    @property
    def port(self) -> int:
        return self._port.number

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def order(self, *kill: At, fail: At | None = None) -> None:
        """Order it to kill itself at points in turn, and to fail a step."""
        orders = {"kill": [vars(at) for at in kill], "fail": fail and vars(fail)}
        new = self._orders.with_suffix(".new")
        new.write_text(json.dumps(orders))
        new.replace(self._orders)  # a running step may read it now

    @contextmanager
    def delayed_workflows(self) -> Iterator[None]:
        """Delay workflows until the block ends, so that requests get their response first."""
        self._hold.touch()
        try:
            yield
        finally:
            self._hold.unlink()

    def orders_left(self) -> int:
        """The number of orders not carried out yet."""
        left = json.loads(self._orders.read_text())
        return len(left["kill"]) + (left["fail"] is not None)

    async def sagas(self) -> dict[str, SagaTable | None]:
        """Registered workflows by name, with the step table of each saga."""
        await self.call("GET", "/health")  # once it answers, it has reported them
        tables = json.loads(self._sagas.read_text())
        return {name: table and SagaTable(**table) for name, table in tables.items()}

    async def start(self, *, twice: bool = False) -> None:
        """Start it; with `twice` it runs every step twice."""
        how_often = "twice" if twice else "once"
        if not self.is_as_shipped:
            await asyncio.to_thread(self._prepare)
        hashing = "real" if self.is_as_shipped else "quick"
        argv = [str(self._orders), str(self._sagas), str(self._hold), how_often, hashing]
        self._process = await asyncio.to_thread(forks.fork, "controller", argv, self.env, self.log)

    def _prepare(self) -> None:
        """Copy prepared SQLite files, which is faster than creating them."""
        folder = self.state_dir / "controller"
        url = self.env.get("DATABASE_URL")
        if url is None or url.startswith("sqlite:"):
            file = folder / "polydev.db" if url is None else Path(url.removeprefix("sqlite:///"))
            if not file.exists():
                sqlite_template.put_database(file)
            if not (folder / "journal.db").exists():
                sqlite_template.put_journal(folder)

    async def ended(self) -> int:
        assert self._process is not None
        code = await asyncio.wait_for(self._process.wait(), _LIMIT_S)
        self._process = None
        return code

    async def end(self) -> int:
        """Stop it with SIGTERM, as a service manager does."""
        os.kill(self.pid, signal.SIGTERM)
        return await self.ended()

    async def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            await self.ended()

    def with_token(self, token: str) -> ControllerProcess:
        """The same controller, called with another token."""
        other = copy.copy(self)
        other.token = token
        return other

    async def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Send a request and return its JSON; works while the controller starts."""
        async with self.client() as client:
            answer = await client.request(method, path, json=body)
            assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
            return answer.json()

    def client(self) -> httpx.AsyncClient:
        return self.client_as(headers={"authorization": f"Bearer {self.token}"})

    def client_as(self, **how: Any) -> httpx.AsyncClient:
        """A client without credentials; `how` is passed to httpx.

        It verifies no certificates: the server has none, and loading the CAs for each client takes
        longer than most requests.
        """
        return httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{self.port}",
            # The server closes connections that are idle for 5 s.
            transport=_RetryingTransport(verify=False, limits=httpx.Limits(keepalive_expiry=2)),
            timeout=_LIMIT_S,
            **how,
        )

    async def connect(self, provider: str) -> str:
        """Start a connect session, and return its id."""
        started = await self.call("POST", "/api/auth/start", {"provider": provider})
        return str(started["sessionId"])

    async def session(self, session_id: str) -> dict[str, Any]:
        found: dict[str, Any] = await self.call("GET", f"/api/auth/session/{session_id}")
        return found

    async def wait_for_session(self, session_id: str, *statuses: str) -> dict[str, Any]:
        """Wait until a session has one of these statuses or has ended."""
        wanted = set(statuses) | ENDS
        async with asyncio.timeout(_LIMIT_S):
            view = await self.session(session_id)
            while view["status"] not in wanted:
                path = f"/api/auth/session/{session_id}?after={view['version']}&wait=20"
                view = await self.call("GET", path)
        return view

    def host(self) -> HostClient:
        return HostClient(self.state_dir / "sockets" / "hostd.sock")


class _RetryingTransport(httpx.AsyncHTTPTransport):
    """Connect as soon as the controller listens; httpx's own retries are slower."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        for _ in range(int(_LIMIT_S / _PAUSE_S)):
            try:
                return await super().handle_async_request(request)
            except httpx.ConnectError:
                await asyncio.sleep(_PAUSE_S)  # nothing announces an open port
        return await super().handle_async_request(request)


def main(argv: Sequence[str]) -> int:
    """Run the controller with an observer.

    Arguments: the files of orders, sagas and hold; `once` or `twice` for steps; `quick` or `real`
    hashing.
    """
    import quick_hashing

    from polydev.controller import bootstrap
    from polydev.controller.settings import ControllerSettings, read
    from polydev.shared.errors import PolydevError
    from polydev.shared.logging import setup

    orders, sagas, hold, times, hashing = argv
    if hashing == "quick":
        quick_hashing.apply(setattr)
    _report_sagas(Path(sagas), Path(hold))
    if times == "twice":
        _do_steps_twice()
    try:
        settings = read(ControllerSettings)
        setup.set_up(as_json=settings.log_json)
        bootstrap.run(settings, _obeying(Path(orders)))
    except PolydevError as error:
        print(f"polydev: {error.line()}", file=sys.stderr)
        return 1
    return 0


def make_journal(argv: Sequence[str]) -> int:
    """Create the journal of a database, as a controller's first start does."""
    from polydev.controller.workflows.engine.dbos_store import open_dbos_store
    from polydev.controller.workflows.engine.engine import Engine

    url, folder = argv

    async def start_once() -> None:
        engine = Engine(open_dbos_store(url, Path(folder)))
        await engine.start()
        await engine.stop()

    asyncio.run(start_once())
    return 0


def _obeying(orders: Path) -> Callable[[str, str], None]:
    def on_point(step: str, point: str) -> None:
        if not orders.exists():
            return
        left, here = json.loads(orders.read_text()), {"step": step, "point": point}
        if left["kill"][:1] == [here]:
            orders.write_text(json.dumps({**left, "kill": left["kill"][1:]}))
            os.kill(os.getpid(), signal.SIGKILL)
        if left["fail"] == here:
            orders.write_text(json.dumps({**left, "fail": None}))
            raise LoginFailed(f"The test failed it {point} {step}")

    return on_point


def _report_sagas(file: Path, hold: Path) -> None:
    from polydev.controller.workflows.engine import engine, saga

    add = engine.Engine.register
    tables: dict[str, dict[str, Any] | None] = {}

    def register_and_report(self: engine.Engine, name: str, body: engine.Body) -> None:
        async def held(subject: str) -> None:
            while hold.exists():
                await asyncio.sleep(0.01)
            await body(subject)

        add(self, name, held)
        tables[name] = None
        if isinstance(body, partial) and isinstance(it := body.func.__self__, saga.Saga):
            undone = [step.name for step in it.steps if step.undo is not None]
            always = [step.name for step in it.always]
            tables[name] = vars(SagaTable([step.name for step in it.steps], undone, always))
        file.write_text(json.dumps(tables))

    engine.Engine.register = register_and_report  # type: ignore[method-assign]


def _do_steps_twice() -> None:
    from polydev.controller.workflows.engine import saga

    once = saga._retry

    async def twice(work: Callable[[], Awaitable[None]], *how: Any) -> None:
        await once(work, *how)
        await once(work, *how)

    saga._retry = twice  # type: ignore[assignment]
