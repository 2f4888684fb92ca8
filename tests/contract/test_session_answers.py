"""Test that session responses name the CLI machine only.

Neither sessions nor `/api/vm/active-cli` name a browser machine, in any state.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from new_records import new_machine, new_session

from polydev.controller.access import open_access
from polydev.controller.access.tokens.admin_token import ADMINISTRATOR
from polydev.controller.api.http.services import Services
from polydev.controller.api.server import create_api
from polydev.controller.settings import ControllerSettings
from polydev.controller.store.engine.database import Database, open_database
from polydev.controller.store.queries.connect import sessions
from polydev.controller.store.queries.machines import machines
from polydev.shared.domain import (
    LOGIN_STEPS,
    ConnectSession,
    Machine,
    MachineKind,
    MachineState,
    SessionId,
    SessionStatus,
    VmId,
    now,
    vm_id_for,
)

TOKEN = "a-token-of-the-tests-only"
STEPS = list(LOGIN_STEPS)
STATES = [
    (SessionStatus.QUEUED, None),
    *((SessionStatus.RUNNING, step) for step in STEPS),
    *((SessionStatus.WAITING, step) for step in STEPS[3:7]),
    *((status, "destroy-browser") for status in SessionStatus if status.is_end),
]
BROWSER_ADDRESS = "192.168.100.77"
CLI_ADDRESS = "192.168.100.5"


@dataclass(frozen=True)
class Api:
    """API over a database, without background workers."""

    database: Database
    client: httpx.AsyncClient

    async def get(self, path: str) -> httpx.Response:
        return await self.client.get(path)

    async def insert_machine(
        self, machine: Machine, state: MachineState, address: str | None
    ) -> None:
        async with self.database.write() as connection:
            await machines.insert_if_absent(connection, machine)
            await machines.set_state(connection, machine.vm_id, state, address)


@pytest.fixture
async def api(database_url: str, tmp_path: Path) -> AsyncIterator[Api]:
    settings = ControllerSettings(state_dir=tmp_path, admin_token=TOKEN)
    database = open_database(database_url, tmp_path)
    await database.upgrade()
    access = await open_access(database, settings)
    queue = SimpleNamespace(ahead_of=lambda session: None)
    services = cast(Services, SimpleNamespace(database=database, access=access, connect=queue))
    transport = httpx.ASGITransport(create_api(services, "127.0.0.1"))
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(
        transport=transport, base_url="http://127.0.0.1", headers=headers
    ) as client:
        yield Api(database, client)
    await database.close()


def _machine(kind: MachineKind, vm_id: VmId, session_id: SessionId) -> Machine:
    machine = new_machine(ADMINISTRATOR, kind)
    return replace(machine, vm_id=vm_id, session_id=session_id)


def _session(number: int, provider: str) -> ConnectSession:
    session_id = SessionId(f"00000000-0000-4000-8000-{number:012}")
    return replace(new_session(ADMINISTRATOR, provider), session_id=session_id)


async def _insert_session(
    api: Api, session: ConnectSession, state: tuple[SessionStatus, str | None], cli: VmId | None
) -> None:
    """Insert a session in that state, with its steps and CLI machine."""
    status, step = state
    async with api.database.write() as connection:
        await sessions.insert(connection, session)
        await sessions.update(connection, session.session_id, step=step, cli_vm_id=cli)
        for it in STEPS[: STEPS.index(step) + 1] if step else ():
            await sessions.start_step(connection, session.session_id, it, now())
        if status.is_end:
            problem = None if status is SessionStatus.COMPLETED else ("login-failed", "It failed")
            await sessions.end(connection, session.session_id, status, now(), problem)
        else:
            await sessions.update(connection, session.session_id, status=status)


@pytest.mark.parametrize("state", STATES, ids=lambda it: f"{it[0]} {it[1] or ''}".strip())
async def test_session_names_only_its_cli_machine(
    api: Api, state: tuple[SessionStatus, str | None]
) -> None:
    first, second = _session(1, "codex"), _session(2, "claude_code")
    browser = vm_id_for(first.session_id, MachineKind.BROWSER)
    cli = vm_id_for(first.session_id, MachineKind.CLI)
    others = vm_id_for(second.session_id, MachineKind.BROWSER)
    await _insert_session(api, first, state, cli)
    await _insert_session(api, second, (SessionStatus.RUNNING, "browser-ready"), cli)
    browsers = [(browser, BROWSER_ADDRESS), (others, "192.168.100.78")]
    for vm_id, address in browsers:
        machine = _machine(MachineKind.BROWSER, vm_id, first.session_id)
        await api.insert_machine(machine, MachineState.RUNNING, address)
    seen: list[str] = []
    for runs in (False, True):
        if runs:
            machine = _machine(MachineKind.CLI, cli, first.session_id)
            await api.insert_machine(machine, MachineState.RUNNING, CLI_ADDRESS)
        for session in (first, second):
            await _check_session(api, session, cli if runs else None, seen)
        await _check_active(api, cli if runs else None, seen)
    assert browser not in "".join(seen)
    assert BROWSER_ADDRESS not in "".join(seen)
    assert others not in "".join(seen)


async def _check_session(
    api: Api, session: ConnectSession, cli: VmId | None, seen: list[str]
) -> None:
    path = f"/api/auth/session/{session.session_id}"
    answer = await api.get(path)
    listed, complete = await api.get("/api/auth/sessions"), await api.get(f"{path}/complete")
    seen += [answer.text, listed.text, complete.text]
    expected = None if cli is None else {"vmId": cli, "ipAddress": CLI_ADDRESS}
    assert answer.json()["cliVM"] == expected
    if answer.json()["status"] == "completed" and cli is not None:
        completed: dict[str, Any] = complete.json()
        assert completed == {"success": True, "sessionId": session.session_id, "cliVM": expected}
    else:
        assert (complete.status_code, complete.json()["code"]) == (409, "session-not-completed")
    if answer.json()["endedAt"] is not None:
        async with api.client.stream("GET", f"{path}/events") as stream:
            seen += [text async for text in stream.aiter_text()]


async def _check_active(
    api: Api, cli: VmId | None, seen: list[str], state: MachineState = MachineState.RUNNING
) -> None:
    answer = await api.get("/api/vm/active-cli")
    seen.append(answer.text)
    if cli is None:
        assert (answer.status_code, answer.json()["detail"]) == (404, "No active CLI VM")
    else:
        assert answer.status_code == 200
        assert answer.json() | {"createdAt": ""} == {
            "vmId": cli,
            "ipAddress": CLI_ADDRESS,
            "status": state,
            "createdAt": "",
        }


SLEEPING = {MachineState.HIBERNATING, MachineState.HIBERNATED, MachineState.RESUMING}
"""A hibernated machine resumes on use, so it counts as active."""


@pytest.mark.parametrize("state", MachineState)
async def test_cli_machine_is_active_while_running_or_hibernated(
    api: Api, state: MachineState
) -> None:
    session_id = SessionId("00000000-0000-4000-8000-000000000001")
    cli = vm_id_for(session_id, MachineKind.CLI)
    await api.insert_machine(_machine(MachineKind.CLI, cli, session_id), state, CLI_ADDRESS)
    browser = vm_id_for(session_id, MachineKind.BROWSER)
    machine = _machine(MachineKind.BROWSER, browser, session_id)
    await api.insert_machine(machine, MachineState.RUNNING, BROWSER_ADDRESS)
    is_active = state in SLEEPING | {MachineState.RUNNING}
    await _check_active(api, cli if is_active else None, [], state)


async def test_oldest_running_cli_machine_is_active(api: Api) -> None:
    session_id = SessionId("00000000-0000-4000-8000-000000000001")
    at = now()
    states = [MachineState.STOPPED, MachineState.RUNNING, MachineState.RUNNING]
    for number, state in zip(itertools.count(), states, strict=False):
        machine = _machine(MachineKind.CLI, VmId(f"vm-{number}"), session_id)
        machine = replace(machine, created_at=at + timedelta(seconds=number))
        await api.insert_machine(machine, state, CLI_ADDRESS)
    await _check_active(api, VmId("vm-1"), [])
