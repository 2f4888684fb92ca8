"""A real controller and a real host agent with simulated machines."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
from agent_process import AgentProcess, agent_world
from controller_process import KEY, TOKEN, ControllerProcess
from psycopg import sql

from polydev.controller.access.caller import LOCAL, Caller
from polydev.controller.access.tokens.api_tokens import ApiTokens
from polydev.controller.store.engine.database import Database, open_database
from polydev.controller.store.queries.accounts import users
from polydev.controller.store.queries.connect import sessions
from polydev.controller.store.queries.machines import machines
from polydev.controller.workflows.engine.dbos_store import SCHEMA
from polydev.shared.domain import Scope, User, UserId, now

LIMIT_S = 60
FILES = {
    "codex": "/root/.codex/auth.json",
    "claude_code": "/root/.claude/.credentials.json",
    "gemini_cli": "/root/.gemini/oauth_creds.json",
}


class World:
    """A host agent with its controllers."""

    def __init__(self, agent: AgentProcess, controller: ControllerProcess) -> None:
        self.agent = agent
        self.controller = controller
        self.controllers = [controller]
        self.url = controller.env.get("DATABASE_URL")

    def add_controller(self) -> ControllerProcess:
        """Add a controller of the same database, not started."""
        settings = self.controller.env
        name = f"controller-{len(self.controllers) + 1}"
        self.controllers.append(ControllerProcess(self.agent.state_dir, name, **settings))
        return self.controllers[-1]

    @asynccontextmanager
    async def database(self) -> AsyncIterator[Database]:
        """Open the controllers' database beside them."""
        database = open_database(self.url, self.agent.state_dir / "controller")
        try:
            yield database
        finally:
            await database.close()

    async def create_users(self, count: int) -> dict[UserId, str]:
        """Create users, each with a token of every scope but admin."""
        made = {}
        async with self.database() as database:
            for number in range(count):
                user = User(UserId(f"person-{number}"), f"p{number}@example.test", now())
                async with database.write() as connection:
                    await users.insert(connection, user)
                scopes = frozenset(Scope) - {Scope.ADMIN}
                caller = Caller(user, scopes, LOCAL, "127.0.0.1")
                _, made[user.user_id] = await ApiTokens(database).create(
                    caller, "tests", scopes, None
                )
        return made

    async def machines(self) -> dict[str, str]:
        """Kinds of the host's machines by id; assert that nothing else is left there."""
        async with self.agent.host() as host:
            there = await host.inventory()
            views = {view.vm_id: str(view.machine_kind) for view in await host.machines()}
        assert sorted(there.machines) == sorted(views)
        assert sorted(there.folders) == sorted(views)
        assert sorted(there.addresses) == sorted(views)
        assert len(there.taps) == len(there.firewall) == len(views)
        return views

    async def rows(self) -> dict[str, str]:
        """Kinds of the user's machines by id, from the API."""
        listed = await self.controller.call("GET", "/api/vm/list")
        return {row["vm_id"]: row["vm_type"] for row in listed}

    async def states(self) -> dict[str, str]:
        """States of the host's machines by id."""
        async with self.agent.host() as host:
            return {view.vm_id: str(view.state) for view in await host.machines()}

    async def destroy(self, vm_id: str) -> None:
        """Destroy a machine through the API, and wait until it is gone."""
        await self.controller.call("POST", "/api/vm/destroy", {"vmId": vm_id})
        await self.wait_for_machine(vm_id, "destroyed")

    async def wait_for_machine(self, vm_id: str, *statuses: str) -> dict[str, Any]:
        """Wait for one of these statuses; the API no longer shows a destroyed machine."""
        path = f"/api/vm/{vm_id}"
        async with asyncio.timeout(LIMIT_S), self.controller.client() as client:
            answer = await client.get(path)
            while answer.is_success and answer.json()["status"] not in statuses:
                version = answer.json()["version"]
                answer = await client.get(path, params={"after": version, "wait": 20})
        gone = answer.status_code == 404
        view = {"vm_id": vm_id, "status": "destroyed"} if gone else answer.json()
        assert view["status"] in statuses, view
        return dict(view)

    def print_warnings(self) -> None:
        """Print the controllers' warnings and errors, to explain a failed test."""
        for controller in self.controllers:
            lines = controller.log.read_text().splitlines() if controller.log.exists() else []
            warnings = [line for line in lines if " INFO " not in line]
            print(f"-- {controller.log.name}", *warnings[-40:], sep="\n")

    @property
    def is_shared(self) -> bool:
        """True if controllers can share the database."""
        return self.url is not None and self.url.startswith("postgresql")

    async def expire_leases(self) -> None:
        """Expire the leases of killed controllers now."""
        if self.is_shared:
            await asyncio.to_thread(self._expire_leases)

    def _dump(self) -> bytes:
        """Dump every table of the database and the journal as `COPY` text."""
        with psycopg.connect(self.url or "") as connection:
            connection.execute("SET ROLE polydev_worker")
            tables = connection.execute(
                "SELECT schemaname, tablename FROM pg_tables"
                " WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
            ).fetchall()
            connection.execute("RESET ROLE")
            assert {schema for schema, _ in tables} == {"public", SCHEMA}
            dumped = []
            for schema, table in tables:
                role = "polydev_worker" if schema == "public" else "none"
                connection.execute("SELECT set_config('role', %s, false)", [role])
                name = sql.Identifier(schema, table)
                with connection.cursor().copy(sql.SQL("COPY {} TO STDOUT").format(name)) as rows:
                    dumped += [bytes(row) for row in rows]
        return b"".join(dumped)

    def _expire_leases(self) -> None:
        with psycopg.connect(self.url or "", autocommit=True) as connection:
            connection.execute("SET ROLE polydev_worker")
            connection.execute("UPDATE controllers SET lease_until = now()")

    async def credentials(self, vm_id: str, provider: str) -> dict[str, Any]:
        """Read the credentials file of a CLI machine."""
        async with self.agent.host() as host:
            found: dict[str, Any] = json.loads(await host.read_file(vm_id, FILES[provider]))
            return found

    async def assert_exact(self, *cli_machines: str) -> None:
        """Assert that exactly these machines of all users exist, and all sessions have ended."""
        expected = dict.fromkeys(cli_machines, "cli")
        assert await self.machines() == expected
        async with self.database() as database, database.read() as connection:
            rows = await machines.list_alive(connection)
            assert {row.vm_id: str(row.vm_type) for row in rows} == expected
            assert {str(row.status) for row in rows} <= {"running", "stopped"}
            assert await sessions.list_live(connection) == []

    async def assert_clean(self, *cli_machines: str) -> None:
        """Assert that exactly these CLI machines exist, on the host and in the API."""
        expected = dict.fromkeys(cli_machines, "cli")
        assert await self.machines() == expected
        assert await self.rows() == expected

    def assert_no_trace_of(self, *secrets: str) -> None:
        """Assert that no secret is in a file outside machines or in process arguments."""
        needles = [secret.encode() for secret in (*secrets, KEY, TOKEN)]
        logs = [controller.log for controller in self.controllers]
        files = [*logs, self.agent.log, *_files_in(self.agent.state_dir)]
        checked = [it for it in files if it.is_file() and "simulated-root" not in it.parts]
        if self.is_shared:
            dump = self.agent.state_dir.parent / "dump.sql"
            dump.write_bytes(self._dump())
            checked.append(dump)
        else:
            assert any(it.name == "journal.db" for it in checked)
        for path in (*checked, *Path("/proc").glob("[0-9]*/cmdline")):
            try:
                content = path.read_bytes()
            except OSError:
                continue
            for needle in needles:
                assert needle not in content, f"{needle[:6]!r}… is in {path}"


def _files_in(folder: Path) -> list[Path]:
    """List all files below a folder, whose folders may vanish meanwhile, unlike in `rglob`."""
    return [Path(parent, name) for parent, _, names in os.walk(folder) for name in names]


def tokens_in(credentials: object) -> list[str]:
    """Strings in credentials that are long enough to be secrets."""
    return re.findall(r'"([^"\s]{24,})"', json.dumps(credentials))


@asynccontextmanager
async def open_world(
    simulation: dict[str, Any] | None = None, **settings: str
) -> AsyncIterator[World]:
    """A world with this simulation and these controller settings; the controller is not started."""
    async with agent_world(
        POLYDEV_DRIVER="simulated",
        POLYDEV_SIMULATION=json.dumps(simulation or {}),
        POLYDEV_HOST_MEMORY_MIB="4000000",
        POLYDEV_HOST_VCPUS="4000",
    ) as agent:
        await agent.start()
        world = World(agent, ControllerProcess(agent.state_dir, **settings))
        try:
            yield world
        except BaseException:
            world.print_warnings()
            raise
        finally:
            for controller in world.controllers:
                await controller.kill()
