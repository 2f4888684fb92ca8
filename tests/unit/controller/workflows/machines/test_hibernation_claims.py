"""Races between the hibernation and the use of a machine, on both databases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from polydev.controller.access.caller import Caller
from polydev.controller.chat import Chats
from polydev.controller.settings import ControllerSettings
from polydev.controller.store.engine.database import Database, open_database
from polydev.controller.store.queries.accounts import users
from polydev.controller.store.queries.chats import chats
from polydev.controller.store.queries.connect import credentials
from polydev.controller.store.queries.machines import hibernation, machines
from polydev.controller.workflows.engine.engine import Engine
from polydev.controller.workflows.machines.actor import Actor
from polydev.controller.workflows.machines.idle import format_duration, is_idle
from polydev.controller.workflows.machines.machine_commands import MachineCommands
from polydev.controller.workflows.machines.machine_operations import MachineOperations
from polydev.shared.domain import (
    CredentialId,
    HostId,
    Machine,
    MachineKind,
    MachineSize,
    MachineState,
    Scope,
    SealedCredential,
    User,
    UserId,
    new_vm_id,
    now,
)
from polydev.shared.errors import MachineBusy
from polydev.shared.host_protocol import Usage, UsageSample

ANN = UserId("ann")
IDLE = Actor.for_controller("idle", "not used")
LONG_AGO = now() - timedelta(hours=2)
MACHINE = Machine(
    vm_id=new_vm_id(),
    user_id=ANN,
    vm_type=MachineKind.CLI,
    status=MachineState.RUNNING,
    ip_address=None,
    session_id=None,
    host_id=HostId("a"),
    size=MachineSize(1024, 1, 4096),
    error_code=None,
    error=None,
    created_at=LONG_AGO,
)
_A_WHILE_S = 0.3
"""For what must wait to show that it does not."""


class _NoEngine:
    async def enqueue(self, name: str, subject: str) -> None:
        pass


@pytest.fixture
async def database(database_url: str, tmp_path: Path) -> AsyncIterator[Database]:
    """User Ann, connected to Codex, with a running machine unused for two hours."""
    database = open_database(database_url, tmp_path)
    await database.upgrade()
    async with database.write() as connection:
        await users.insert(connection, User(ANN, "ann@example.test", now()))
        await machines.insert_if_absent(connection, MACHINE)
        sealed = SealedCredential(
            credential_id=CredentialId("c"),
            user_id=ANN,
            provider="codex",
            encrypted_credentials="AA==",
            encryption_iv="AA==",
            encryption_tag="AA==",
            encryption_salt="AA==",
            key_id="key-1",
            created_at=now(),
        )
        await credentials.upsert(connection, sealed)
    yield database
    await database.close()


@pytest.fixture
def commands(database: Database) -> MachineCommands:
    means = cast(MachineOperations, SimpleNamespace(database=database))
    return MachineCommands(means, cast(Engine, _NoEngine()), lambda _step, _point: None)


Ask = Callable[[], Awaitable[int]]


@pytest.fixture
async def ask(database: Database) -> Ask:
    """Request a chat turn."""
    user = User(ANN, "ann@example.test", now())
    caller = Caller(user, frozenset(Scope), "sign-in", "127.0.0.1")
    talks = Chats(database, ControllerSettings())
    chat = await talks.create(caller, "codex", "")
    return lambda: talks.start_turn(caller, chat.chat_id, "hello")


class _Paused:
    """A function that stops after its work, inside its caller's transaction."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> None:
        self.is_there, self.go_on = asyncio.Event(), asyncio.Event()
        self._work = getattr(module, name)
        monkeypatch.setattr(module, name, self)

    async def __call__(self, *arguments: Any) -> Any:
        outcome = await self._work(*arguments)
        self.is_there.set()
        await self.go_on.wait()
        return outcome


async def _second_waits(first: _Paused, second: Awaitable[Any]) -> asyncio.Future[Any]:
    """Start the second during the transaction of the first; check that it waits."""
    await first.is_there.wait()
    task = asyncio.ensure_future(second)
    await asyncio.wait({task}, timeout=_A_WHILE_S)
    assert not task.done()
    first.go_on.set()
    return task


async def _status(database: Database) -> MachineState:
    async with database.read() as connection:
        return (await machines.get(connection, MACHINE.vm_id, None)).status


async def test_turn_being_requested_prevents_hibernation(
    database: Database,
    commands: MachineCommands,
    ask: Ask,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paused = _Paused(monkeypatch, chats, "insert_turn")
    asking = asyncio.ensure_future(ask())
    hibernating = await _second_waits(paused, commands.hibernate(IDLE, MACHINE.vm_id, now()))
    assert await asking == 1
    with pytest.raises(MachineBusy, match="A chat turn is running"):
        await hibernating
    assert await _status(database) is MachineState.RUNNING


async def test_turn_after_the_claim_finds_a_hibernating_machine(
    database: Database,
    commands: MachineCommands,
    ask: Ask,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paused = _Paused(monkeypatch, hibernation, "begin_hibernation")
    hibernating = asyncio.ensure_future(commands.hibernate(IDLE, MACHINE.vm_id, now()))
    asking = await _second_waits(paused, ask())
    assert (await hibernating).status is MachineState.HIBERNATING
    assert await asking == 1  # the turn's runner resumes the machine first
    async with database.read() as connection:
        assert await chats.has_active_turn(connection, MACHINE)


async def test_use_being_recorded_prevents_hibernation(
    database: Database, commands: MachineCommands, monkeypatch: pytest.MonkeyPatch
) -> None:
    since = now() - timedelta(hours=1)
    paused = _Paused(monkeypatch, hibernation, "set_used")

    async def use() -> bool:
        async with database.write() as connection:
            return bool(await hibernation.set_used(connection, MACHINE.vm_id, now()))

    using = asyncio.ensure_future(use())
    hibernating = await _second_waits(paused, commands.hibernate(IDLE, MACHINE.vm_id, since))
    assert await using
    with pytest.raises(MachineBusy, match="in use"):
        await hibernating


async def test_use_after_the_claim_is_not_recorded(
    database: Database, commands: MachineCommands, monkeypatch: pytest.MonkeyPatch
) -> None:
    paused = _Paused(monkeypatch, hibernation, "begin_hibernation")
    since = now() - timedelta(hours=1)
    hibernating = asyncio.ensure_future(commands.hibernate(IDLE, MACHINE.vm_id, since))

    async def use() -> bool:
        async with database.write() as connection:
            return await hibernation.set_used(connection, MACHINE.vm_id, now())

    using = await _second_waits(paused, use())
    assert (await hibernating).status is MachineState.HIBERNATING
    assert not await using


async def test_turn_in_another_machine_does_not_count(database: Database, ask: Ask) -> None:
    other = replace(MACHINE, vm_id=new_vm_id())
    await ask()
    async with database.write() as connection:
        await machines.insert_if_absent(connection, other)
        assert await chats.has_active_turn(connection, MACHINE), "it may still exist"
        [it] = await chats.list_active(connection)
        await chats.update(connection, it.chat.chat_id, vm_id=other.vm_id)
        assert not await chats.has_active_turn(connection, MACHINE)
        assert await chats.has_active_turn(connection, other)
        await machines.set_state(connection, other.vm_id, MachineState.DESTROYED)
        assert await chats.has_active_turn(connection, MACHINE), "its host is gone"


# -- idleness --------------------------------------------------------------------------------------

AT = datetime(2026, 3, 14, 12, tzinfo=UTC)


def _usage(*cores: float) -> Usage:
    """A sample every five seconds, the last one at noon."""
    first = AT - timedelta(seconds=5 * (len(cores) - 1))
    samples = [
        UsageSample(at=first + timedelta(seconds=5 * it), cpu=cpu, memory_bytes=1)
        for it, cpu in enumerate(cores)
    ]
    return Usage(period_s=5, samples=samples)


def test_machine_with_low_cpu_usage_is_idle() -> None:
    assert is_idle(_usage(*[0.02] * 360), AT - timedelta(minutes=30), 0.1)


def test_one_recent_busy_minute_is_not_idle() -> None:
    usage = _usage(*[0.0] * 348, *[0.5] * 12)
    assert not is_idle(usage, AT - timedelta(minutes=30), 0.1)


def test_missing_samples_are_not_idle() -> None:
    assert not is_idle(_usage(), AT - timedelta(minutes=30), 0.1)
    assert not is_idle(_usage(*[0.0] * 60), AT - timedelta(minutes=30), 0.1)


def test_last_sample_decides_for_less_than_one_period() -> None:
    assert is_idle(_usage(0.01), AT + timedelta(seconds=4), 0.1)
    assert not is_idle(_usage(0.5), AT + timedelta(seconds=4), 0.1)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1800, "30 minutes"),
        (60, "1 minute"),
        (7200, "2 hours"),
        (90, "90 seconds"),
        (1, "1 second"),
    ],
)
def test_duration_is_formatted_as_text(seconds: int, text: str) -> None:
    assert format_duration(timedelta(seconds=seconds)) == text
