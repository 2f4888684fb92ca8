"""Test the queries, and what the database itself refuses."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from new_records import new_credential, new_machine, new_session
from owned_rows import ANN, BEN
from sqlalchemy.exc import IntegrityError

from polydev.controller.store.engine.database import Database
from polydev.controller.store.queries.accounts import users as user_queries
from polydev.controller.store.queries.connect import credentials, sessions
from polydev.controller.store.queries.machines import machines
from polydev.shared.domain import MachineKind, MachineState, SessionStatus, User, now
from polydev.shared.errors import NoSuchMachine, NoSuchSession


@pytest.fixture(autouse=True)
async def _users(store: Database) -> None:
    async with store.write() as connection:
        for name in (ANN, BEN):
            await user_queries.insert(connection, User(name, f"{name}@example.test", now()))


async def test_session_is_read_back_unchanged(store: Database) -> None:
    session = new_session()
    async with store.write() as connection:
        await sessions.insert(connection, session)
        assert await sessions.get(connection, session.session_id) == session
        assert await sessions.find_live(connection, ANN, "codex") == session


async def test_session_of_another_user_is_missing(store: Database) -> None:
    session = new_session()
    async with store.write() as connection:
        await sessions.insert(connection, session)
        with pytest.raises(NoSuchSession):
            await sessions.get(connection, session.session_id, BEN)


async def test_one_live_session_per_user_and_provider(store: Database) -> None:
    first = new_session()
    async with store.write() as connection:
        await sessions.insert(connection, first)
        await sessions.insert(connection, new_session(BEN))
        await sessions.insert(connection, new_session(provider="claude_code"))
    with pytest.raises(IntegrityError):
        async with store.write() as connection:
            await sessions.insert(connection, new_session())
    async with store.write() as connection:
        await sessions.end(connection, first.session_id, SessionStatus.FAILED, now())
        await sessions.insert(connection, new_session())


async def test_ended_session_never_changes(store: Database) -> None:
    session = new_session()
    async with store.write() as connection:
        await sessions.insert(connection, session)
        await sessions.end(
            connection, session.session_id, SessionStatus.FAILED, now(), ("login-failed", "It did")
        )
        ended = await sessions.get(connection, session.session_id)
        assert (ended.error_code, ended.error) == ("login-failed", "It did")
        assert not await sessions.update(connection, session.session_id, step="capture")
        assert not await sessions.request_cancel(connection, session.session_id, now())
        await sessions.end(connection, session.session_id, SessionStatus.COMPLETED, now())
        assert await sessions.get(connection, session.session_id) == ended


async def test_first_cancel_request_counts(store: Database) -> None:
    session, first = new_session(), now()
    async with store.write() as connection:
        await sessions.insert(connection, session)
        assert await sessions.request_cancel(connection, session.session_id, first)
        assert await sessions.request_cancel(
            connection, session.session_id, first + timedelta(seconds=9)
        )
        assert (await sessions.get(connection, session.session_id)).cancel_requested_at == first


async def test_repeated_step_keeps_its_first_start(store: Database) -> None:
    session, first = new_session(), now()
    async with store.write() as connection:
        await sessions.insert(connection, session)
        await sessions.start_step(connection, session.session_id, "one", first)
        await sessions.start_step(
            connection, session.session_id, "one", first + timedelta(seconds=5)
        )
        await sessions.end_step(connection, session.session_id, "one", now(), "done")
        (step,) = await sessions.list_steps(connection, session.session_id)
    assert (step.step, step.started_at, step.outcome) == ("one", first, "done")


async def test_cli_machine_is_used_by_live_and_completed_sessions(
    store: Database,
) -> None:
    machine = new_machine()
    live, completed, failed = (
        new_session(provider="a"),
        new_session(provider="b"),
        new_session(provider="c"),
    )
    async with store.write() as connection:
        for session in (live, completed, failed):
            await sessions.insert(connection, session)
            await sessions.update(connection, session.session_id, cli_vm_id=machine.vm_id)
        await sessions.end(connection, completed.session_id, SessionStatus.COMPLETED, now())
        await sessions.end(connection, failed.session_id, SessionStatus.FAILED, now())
        users = await sessions.list_using_machine(connection, machine.vm_id)
    assert set(users) == {live.session_id, completed.session_id}


async def test_machines_belong_to_one_user(store: Database) -> None:
    machine = new_machine()
    async with store.write() as connection:
        await machines.insert_if_absent(connection, machine)
        assert await machines.get(connection, machine.vm_id, ANN) == machine
        with pytest.raises(NoSuchMachine):
            await machines.get(connection, machine.vm_id, BEN)
        assert await machines.list_for_user(connection, BEN) == []


async def test_inserting_a_machine_again_keeps_the_row(store: Database) -> None:
    machine = new_machine()
    async with store.write() as connection:
        await machines.insert_if_absent(connection, machine)
        await machines.set_state(connection, machine.vm_id, MachineState.RUNNING, "192.0.2.9")
        await machines.insert_if_absent(connection, machine)
        stored = await machines.get(connection, machine.vm_id, ANN)
    assert stored == replace(machine, status=MachineState.RUNNING, ip_address="192.0.2.9")


async def test_destroyed_machine_never_changes(store: Database) -> None:
    machine = new_machine()
    async with store.write() as connection:
        await machines.insert_if_absent(connection, machine)
        await machines.set_state(connection, machine.vm_id, MachineState.DESTROYED)
        await machines.set_state(connection, machine.vm_id, MachineState.RUNNING, "192.0.2.9")
        assert await machines.list_alive(connection) == []
        with pytest.raises(NoSuchMachine):
            await machines.get(connection, machine.vm_id, ANN)
        row = await machines.find(connection, machine.vm_id)
    assert row is not None
    assert (row.status, row.ip_address) == (MachineState.DESTROYED, None)


async def test_oldest_running_cli_machine_is_selected(store: Database) -> None:
    old, young, browser = new_machine(), new_machine(), new_machine(kind=MachineKind.BROWSER)
    async with store.write() as connection:
        for machine in (old, young, browser):
            await machines.insert_if_absent(connection, machine)
            await machines.set_state(connection, machine.vm_id, MachineState.RUNNING)
        found = await machines.find_cli_machine(connection, ANN, MachineState.RUNNING)
        assert found is not None
        assert found.vm_id == old.vm_id
        assert await machines.find_cli_machine(connection, ANN, MachineState.STOPPED) is None


async def test_upserting_a_credential_twice_keeps_one(store: Database) -> None:
    row = new_credential()
    async with store.write() as connection:
        await credentials.upsert(connection, row)
        again = replace(row, encrypted_credentials="BB==")
        await credentials.upsert(connection, again)
        assert await credentials.find_sealed(connection, row.credential_id) == again
        await credentials.delete(connection, row.credential_id)
        await credentials.delete(connection, row.credential_id)
        assert await credentials.find_sealed(connection, row.credential_id) is None


async def test_new_credential_replaces_only_its_own_kind(store: Database) -> None:
    old, new = new_credential(), new_credential()
    other_user, other_provider = new_credential(BEN), new_credential(provider="claude_code")
    async with store.write() as connection:
        for row in (old, new, other_user, other_provider):
            await credentials.upsert(connection, row)
        await credentials.delete_replaced(connection, new.credential_id)
        left = [
            row.credential_id
            for row in (old, new, other_user, other_provider)
            if await credentials.find_sealed(connection, row.credential_id)
        ]
    assert left == [
        new.credential_id,
        other_user.credential_id,
        other_provider.credential_id,
    ]
