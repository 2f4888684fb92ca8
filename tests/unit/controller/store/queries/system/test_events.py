"""Test that events are emitted with the change, ordered and complete."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
import sqlalchemy as sa
from new_records import new_credential, new_machine, new_session
from owned_rows import ANN, BEN

from polydev.controller.store.engine import event_outbox
from polydev.controller.store.engine.database import Database
from polydev.controller.store.queries.accounts import users
from polydev.controller.store.queries.connect import credentials, sessions
from polydev.controller.store.queries.machines import machines
from polydev.controller.store.queries.system import events
from polydev.controller.store.tables import events as table
from polydev.shared.domain import Event, MachineState, SessionStatus, User, UserId, now


@pytest.fixture(autouse=True)
async def _users(store: Database) -> None:
    async with store.write() as connection:
        for name in (ANN, BEN):
            await users.insert(connection, User(name, f"{name}@example.test", now()))


async def _events(store: Database, user: UserId, after: int = 0) -> list[Event]:
    async with store.read(user) as connection:
        return await events.list_after(connection, user, after)


async def _emit(store: Database, user: UserId, *subjects: str) -> None:
    for subject in subjects:
        async with store.write() as connection:
            await event_outbox.emit(connection, user, "machine", subject)


async def test_session_changes_emit_events(store: Database) -> None:
    session = new_session()
    async with store.write() as connection:
        await sessions.insert(connection, session)
    async with store.write() as connection:
        await sessions.update(
            connection, session.session_id, status=SessionStatus.RUNNING, step="a"
        )
    async with store.write() as connection:
        await sessions.start_step(connection, session.session_id, "a", now())
        await sessions.end_step(connection, session.session_id, "a", now(), "done")
    async with store.write() as connection:
        await sessions.request_cancel(connection, session.session_id, now())
    async with store.write() as connection:
        await sessions.end(
            connection, session.session_id, SessionStatus.CANCELLED, now(), ("c", "w")
        )
    async with store.write() as connection:
        await sessions.end(connection, session.session_id, SessionStatus.FAILED, now())
    emitted = await _events(store, ANN)
    assert {(it.kind, it.subject) for it in emitted} == {("session", session.session_id)}
    assert [(it.data["status"], it.data.get("step"), it.data.get("outcome")) for it in emitted] == [
        ("queued", None, None),
        ("running", "a", None),
        ("running", "a", "done"),
        ("running", "a", None),
        ("cancelled", "a", None),
    ]
    assert await _events(store, BEN) == []


async def test_machine_changes_emit_events(store: Database) -> None:
    machine = new_machine()
    async with store.write() as connection:
        await machines.insert_if_absent(connection, machine)
    async with store.write() as connection:
        await machines.insert_if_absent(connection, machine)
    for state in (MachineState.RUNNING, MachineState.STOPPED):
        async with store.write() as connection:
            await machines.set_state(connection, machine.vm_id, state, "192.0.2.9")
    async with store.write() as connection:
        await machines.set_failed(connection, machine.vm_id, ("vmm-failed", "It broke"))
    for state in (MachineState.DESTROYED, MachineState.RUNNING):
        async with store.write() as connection:
            await machines.set_state(connection, machine.vm_id, state)
    emitted = await _events(store, ANN)
    assert [it.data["status"] for it in emitted] == [
        *("creating", "running", "stopped", "failed", "destroyed")
    ]
    assert {(it.kind, it.subject, it.data["kind"]) for it in emitted} == {
        ("machine", machine.vm_id, "cli")
    }


async def test_credential_changes_emit_events(store: Database) -> None:
    old, new = new_credential(), new_credential()
    for row in (old, new):
        async with store.write() as connection:
            await credentials.upsert(connection, row)
    async with store.write() as connection:
        await credentials.delete_replaced(connection, new.credential_id)
    async with store.write() as connection:
        await credentials.delete(connection, new.credential_id)
    emitted = await _events(store, ANN)
    assert [it.subject for it in emitted] == [
        *(old.credential_id, new.credential_id, old.credential_id, new.credential_id)
    ]
    assert {it.kind for it in emitted} == {"credential"}
    assert "AA==" not in str(emitted)


async def test_two_changes_in_one_transaction_emit_one_event(store: Database) -> None:
    session = new_session()
    async with store.write() as connection:
        await sessions.insert(connection, session)
        await sessions.update(connection, session.session_id, status=SessionStatus.RUNNING)
        await sessions.end(connection, session.session_id, SessionStatus.FAILED, now())
    (only,) = await _events(store, ANN)
    assert only.data["status"] == "failed"


async def test_rolled_back_change_emits_no_event(store: Database) -> None:
    async def add_and_fail() -> None:
        async with store.write() as connection:
            await sessions.insert(connection, new_session())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await add_and_fail()
    await _emit(store, ANN, "after")
    assert [it.subject for it in await _events(store, ANN)] == ["after"]


async def test_deleted_user_gets_no_events(store: Database) -> None:
    async with store.write() as connection:
        await event_outbox.emit(connection, ANN, "account", ANN, status="deleted")
        await event_outbox.emit(connection, UserId("nobody"), "account", "nobody")
        await connection.execute(sa.text("DELETE FROM users WHERE id = 'ann'"))
    async with store.read() as connection:
        assert (await connection.execute(sa.select(table))).all() == []


async def test_event_values_are_shortened(store: Database) -> None:
    async with store.write() as connection:
        await event_outbox.emit(connection, ANN, "session", "s", status="x" * 5000, step=None)
    (only,) = await _events(store, ANN)
    assert only.data == {"status": "x" * 64}


async def test_reader_continues_after_its_last_id(store: Database) -> None:
    await _emit(store, ANN, "a", "b")
    await _emit(store, BEN, "other")
    await _emit(store, ANN, "c")
    first, second, third = await _events(store, ANN)
    assert [it.subject for it in await _events(store, ANN, first.event_id)] == ["b", "c"]
    assert [it.subject for it in await _events(store, ANN, second.event_id)] == ["c"]
    assert await _events(store, ANN, third.event_id) == []


@pytest.mark.parametrize("by", ["count", "age"])
async def test_pruned_events_are_detected(store: Database, by: str) -> None:
    await _emit(store, ANN, *"abcde")
    await _emit(store, BEN, "other")
    emitted = await _events(store, ANN)
    keep = 2 if by == "count" else 1000
    if by == "age":
        async with store.write() as connection:
            long_ago = now() - timedelta(days=30)
            old = sa.update(table).where(table.c.event_id <= emitted[2].event_id)
            await connection.execute(old.values(at=long_ago))
    for _ in range(2):
        async with store.write() as connection:
            await events.prune(connection, now() - timedelta(days=7), keep)
    assert [it.subject for it in await _events(store, ANN)] == ["d", "e"]
    assert [it.subject for it in await _events(store, BEN)] == ["other"]
    async with store.read(ANN) as connection:
        whole = [await events.is_complete_after(connection, ANN, it.event_id) for it in emitted]
        assert whole == [False, False, True, True, True]
        assert not await events.is_complete_after(connection, ANN, 0)
        assert not await events.is_complete_after(connection, ANN, emitted[-1].event_id + 100)
    async with store.read(BEN) as connection:
        assert await events.is_complete_after(connection, BEN, 0)


async def test_reader_at_the_end_survives_a_full_prune(store: Database) -> None:
    await _emit(store, ANN, "a", "b")
    _, last = await _events(store, ANN)
    async with store.write() as connection:
        await events.prune(connection, now() + timedelta(days=1), 1000)
    async with store.read(ANN) as connection:
        assert await events.get_newest_id(connection, ANN) == last.event_id
        assert await events.is_complete_after(connection, ANN, last.event_id)
        assert not await events.is_complete_after(connection, ANN, 0)
    await _emit(store, ANN, "c")
    assert [it.subject for it in await _events(store, ANN, last.event_id)] == ["c"]


async def test_reader_misses_nothing_during_concurrent_writes(store: Database) -> None:
    """Each writer delays its commit after it emits.

    On PostgreSQL, ids drawn early would then be committed late.
    """
    writers, rounds = 8, 12
    seen: list[Event] = []
    done = asyncio.Event()

    async def write(writer: int) -> None:
        for number in range(rounds):
            async with store.write() as connection:
                both = (ANN, BEN) if writer % 2 else (BEN, ANN)
                for user in both:
                    await event_outbox.emit(connection, user, "machine", f"{writer}-{number}")
                await asyncio.sleep(0.001 * ((writer * 7 + number * 3) % 5))

    async def read() -> None:
        after = 0
        while True:
            is_last = done.is_set()
            found = await _events(store, ANN, after)
            seen.extend(found)
            after = found[-1].event_id if found else after
            if is_last and not found:
                return
            await asyncio.sleep(0)

    reading = asyncio.create_task(read())
    async with asyncio.timeout(120):
        await asyncio.gather(*(write(it) for it in range(writers)))
        done.set()
        await reading
    expected = {f"{writer}-{number}" for writer in range(writers) for number in range(rounds)}
    assert sorted(it.subject for it in seen) == sorted(expected)
    ids = [it.event_id for it in seen]
    assert ids == sorted(ids)
